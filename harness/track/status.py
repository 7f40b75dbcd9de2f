"""How an MLflow run stands in its store, asked by whoever finds its folder later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import store
from harness.errors import HarnessError


def status(settings: Mapping[str, Any], kept: Mapping[str, Any] | None) -> str | None:
    """`RUNNING`, `FINISHED`, `FAILED` …; None of a run that is not tracked, or that its store no longer has.

    settings: the spec's `track`. kept: what `mlflow.json` in the run's folder says. Raises HarnessError when the store
    cannot be asked.
    """
    if not settings["enabled"] or not kept:
        return None
    uri = store.same_or_kept(store.tracking_uri(settings["uri"]), kept)
    try:
        run = store.open_store(uri).get_run(str(kept["run_id"]))
    except Exception as error:
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        what = f"the run is finished, but not whether its tracking is: {store.reason(error)}"
        raise HarnessError(store.without_secrets(uri), what, "try again when the store answers") from error
    return str(run.info.status) if run.info.lifecycle_stage == "active" else None
