"""Opens an MLflow tracking store, quietly and within a bounded time.

Knows where runs are tracked when nobody says so, and which of MLflow's habits would disturb a run: minutes of retries,
log lines and links on stdout, usage reports. What is written to a store, and what is read, stands elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.utils import redaction
from harness.utils.redaction import redact_text

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_status(settings: Mapping[str, Any], tracking_info: Mapping[str, Any] | None) -> str | None:
    """`RUNNING`, `FINISHED`, `FAILED` …; None of a run that is not tracked, or that its store no longer has.

    settings: the spec's `track`. tracking_info: what `mlflow.json` in the run's folder says. Raises HarnessError when
    the store cannot be asked.
    """
    if not settings["enabled"] or not tracking_info:
        return None
    uri = resume_uri(tracking_uri(settings["uri"]), tracking_info)
    try:
        run = open_store(uri).get_run(str(tracking_info["run_id"]))
    except Exception as error:
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        what = f"the run is finished, but not whether its tracking is: {error_summary(error)}"
        raise HarnessError(redaction.redact_text(uri), what, "try again when the store answers") from error
    return str(run.info.status) if run.info.lifecycle_stage == "active" else None


__all__ = [
    "DEFAULT_URI",
    "absolute_uri",
    "artifact_location",
    "error_summary",
    "import_mlflow",
    "open_store",
    "redact_text",
    "sqlite_file",
    "tracking_uri",
]

DEFAULT_URI = "sqlite:///mlflow.db"

MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set unless the user has set them. MLflow's own 7 retries of 120 s each would take a quarter of an hour to give up."""


def tracking_uri(configured_uri: str | None) -> str:
    """The given URI, else $MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the current folder."""
    return configured_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def absolute_uri(uri: str) -> str:
    """A SQLite URI that stays the same database wherever it is used from; any other as it is."""
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file}{'?' * ('?' in uri)}{uri.partition('?')[2]}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a SQLite URI, absolute; None for any other store."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(match.group(1)).absolute() if match else None


def resume_uri(uri: str, tracking_info: Mapping[str, Any] | None) -> str:
    """The URI under which a run that is gone on with is found: the one given where it is the same store, for it may
    have a password; else the one that the run's `mlflow.json` has kept (`tracked`)."""
    kept = str((tracking_info or {}).get("uri") or "")
    return uri if not kept or redact_text(absolute_uri(uri)) == kept else kept


@contextmanager
def request_timeout(seconds: float) -> Iterator[None]:
    """Within, a single request may take this long, as that of a large file does; what the user has set holds."""
    key, ours = "MLFLOW_HTTP_REQUEST_TIMEOUT", MLFLOW_ENVIRONMENT["MLFLOW_HTTP_REQUEST_TIMEOUT"]
    if os.environ.get(key) != ours:
        yield
        return
    os.environ[key] = str(max(int(seconds), int(ours)))
    try:
        yield
    finally:
        os.environ[key] = ours


def open_store(uri: str, *, create: bool = False) -> MlflowClient:
    """A client of the store, which has answered once. create: a SQLite database that is not there is made.

    Raises OSError or an error of the store's own when it cannot be reached.
    """
    file = sqlite_file(uri)
    if file is not None:
        _check_sqlite_file(file, create)
        uri = absolute_uri(uri)
    import_mlflow()
    from mlflow import MlflowClient

    # The client makes the tables of a new database, of which two runs that start at once would each make some.
    with nullcontext() if file is None else _database_lock(file):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def import_mlflow() -> None:
    """Import MLflow (2 to 4 s) with its settings as a run needs them."""
    for key, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import mlflow  # noqa: F401

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # A failure reaches us as an exception; the migrations and retries behind it are no news for the user.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its artifacts: `mlartifacts/` beside a SQLite database, absolute.

    None for any other store, whose server knows. MLflow's own choice, `mlruns/` in the folder where the command
    happened to be given, tears the artifacts from the database, and `mlruns` is the name of its retired file store.
    """
    file = sqlite_file(uri)
    return None if file is None else (file.parent / "mlartifacts").as_uri()


def error_summary(error: BaseException) -> str:
    """Why a store failed, in one short line without secrets."""
    lines = str(error).strip().splitlines()
    text = " ".join(redact_text(lines[0] if lines else "").split())
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:200]


def _check_sqlite_file(file: Path, create: bool) -> None:
    # MLflow retries an SQLite file that it cannot open for 100 s, with a log line for each try.
    if not create and not file.is_file():
        raise FileNotFoundError(f"there is no database {file}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection = sqlite3.connect(file, timeout=20)
        try:
            connection.execute("PRAGMA schema_version")
            if create:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise OSError(f"{file}: {error}") from error


def _database_lock(file: Path) -> AbstractContextManager[object]:
    from filelock import FileLock

    name = hashlib.sha256(f"{os.path.expanduser('~')}\n{file}".encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"harness-{name}.lock", timeout=60)


def write_tracking_info(folder: Path, uri: str, experiment: str, run_id: str) -> None:
    """Write `mlflow.json`, which names the MLflow run of a run or experiment, to its folder.

    Args:
        folder: The folder of the run or experiment.
        uri: The tracking URI; secrets are removed.
        experiment: Name of the MLflow experiment.
        run_id: MLflow id of the run.
    """
    info = {"uri": redact_text(absolute_uri(uri)), "experiment": experiment, "run_id": run_id}
    (folder / "mlflow.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
