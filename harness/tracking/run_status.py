"""The status of a run in MLflow, asked within a time limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import HarnessError
from harness.tracking import mlflow_store
from harness.tracking.background import DATABASE_START_TIMEOUT, START_TIMEOUT, WorkerThread
from harness.utils import redaction


def tracking_status(settings: Mapping[str, Any], tracking_info: Mapping[str, Any] | None) -> str | None:
    """Return the status of a run in MLflow.

    Args:
        settings: The options of the tracker `mlflow`, and `enabled`.
        tracking_info: The content of `mlflow.json` in the run's folder.

    Returns:
        `RUNNING`, `FINISHED`, `FAILED` …; None if the run is not tracked or the store no longer has it.

    Raises:
        HarnessError: The store cannot be reached.
    """
    if not settings["enabled"] or not tracking_info:
        return None
    uri = mlflow_store.resume_uri(mlflow_store.tracking_uri(settings["uri"]), tracking_info)
    run_id = str(tracking_info["run_id"])
    found: list[Any] = []
    work = WorkerThread("harness-track-status")
    work.submit(lambda: found.append(mlflow_store.open_store(uri).get_run(run_id)))
    work.wait(DATABASE_START_TIMEOUT if mlflow_store.sqlite_file(uri) else START_TIMEOUT)
    error = work.error
    if error is not None:
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        what = f"cannot read the status of the run: {mlflow_store.error_summary(error)}"
        raise HarnessError(redaction.redact_text(uri), what, "try again when the store is reachable") from error
    (run,) = found
    return str(run.info.status) if run.info.lifecycle_stage == "active" else None
