"""Open an MLflow tracking store, quietly and with a time limit.

Holds the default tracking URI and the settings that keep MLflow from disturbing a run: minutes of retries, log lines
and
links on stdout, usage reports.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.utils.atomic_write import atomic_write
from harness.utils.redaction import redact_text

if TYPE_CHECKING:
    from mlflow import MlflowClient


DEFAULT_URI = "sqlite:///mlflow.db"
VIEW_KEY = "harness"
"""Key of the shared view of the runs; see `mlflow_entries.table_view`."""

MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Set unless the user has set them. MLflow's default of 7 retries of 120 s each takes a quarter of an hour to fail."""


def tracking_uri(configured_uri: str | None) -> str:
    """Return the configured URI, else $MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the working directory."""
    return configured_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def absolute_uri(uri: str) -> str:
    """Return a SQLite URI with an absolute path; any other URI as it is."""
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file}{'?' * ('?' in uri)}{uri.partition('?')[2]}"


def sqlite_file(uri: str) -> Path | None:
    """Return the absolute database file of a SQLite URI; None for any other store."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(match.group(1)).absolute() if match else None


def resume_uri(uri: str, tracking_info: Mapping[str, Any] | None) -> str:
    """Return the URI of the store of a resumed run.

    The configured URI is used if it is the same store, since it may contain a password. Otherwise it is the URI saved
    in
    the run's `mlflow.json`.
    """
    saved_uri = str((tracking_info or {}).get("uri") or "")
    return uri if not saved_uri or redact_text(absolute_uri(uri)) == saved_uri else saved_uri


@contextmanager
def request_timeout(seconds: float) -> Iterator[None]:
    """Raise the timeout of single requests in this context, e.g. for large files. A value set by the user is kept."""
    key = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    default = MLFLOW_ENVIRONMENT[key]
    if os.environ.get(key) != default:
        yield
        return
    os.environ[key] = str(max(int(seconds), int(default)))
    try:
        yield
    finally:
        os.environ[key] = default


def open_store(uri: str, *, create: bool = False) -> MlflowClient:
    """Open a client of the store and verify that the store answers.

    Args:
        uri: The tracking URI.
        create: Whether to create a missing SQLite database.

    Raises:
        OSError: The store cannot be reached. MLflow may raise its own errors too.
    """
    file = sqlite_file(uri)
    if file is not None:
        _check_sqlite_file(file, create)
        uri = absolute_uri(uri)
    import_mlflow()
    from mlflow import MlflowClient

    # The client creates the tables of a new database; two runs that start at once would each create some of them.
    with nullcontext() if file is None else _database_lock(file):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def import_mlflow() -> None:
    """Import MLflow (2 to 4 s) with the settings of `MLFLOW_ENVIRONMENT`."""
    for key, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import mlflow  # noqa: F401

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        # A failure is raised as an exception; log lines about migrations and retries do not help the user.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows a database."""


class MlflowPages(NamedTuple):
    """Addresses on MLflow's page.

    Attributes:
        run: The run, with links to its child runs, which have the curves.
        view: The table of the experiment's runs, with scores as columns.
        command: The command that serves the page; None if a server does so already.
    """

    run: str
    view: str
    command: str | None


def build_pages(uri: str, experiment_id: str, run_id: str) -> MlflowPages:
    """Return the addresses of a run on MLflow's page, without secrets."""
    uri = redact_text(absolute_uri(uri))
    is_server = uri.startswith(("http://", "https://"))
    runs = f"{uri.rstrip('/') if is_server else LOCAL_PAGE}/#/experiments/{experiment_id}/runs"
    command = None if is_server else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"
    return MlflowPages(f"{runs}/{run_id}", f"{runs}?viewStateShareKey={VIEW_KEY}", command)


def artifact_location(uri: str) -> str | None:
    """Return the artifact location of a new experiment: `mlartifacts/` next to the SQLite database, absolute.

    None for any other store, whose server decides. MLflow's default, `mlruns/` in the working directory, separates the
    artifacts from the database, and `mlruns` is the name of its retired file store.
    """
    file = sqlite_file(uri)
    return None if file is None else (file.parent / "mlartifacts").as_uri()


MAX_REASON_CHARS = 200


def error_summary(error: BaseException) -> str:
    """Return why a store failed, in one line of about 200 characters, without secrets.

    Errors of HTTP clients begin with addresses and retries and end with the reason, so their end is kept.
    """
    lines = str(error).strip().splitlines()
    text = " ".join(redact_text(lines[0] if lines else "").split())
    if len(text) > MAX_REASON_CHARS:
        text = text.partition(" Response body:")[0]  # a page that a proxy sent
    if len(text) > MAX_REASON_CHARS:
        text = f"…{text[-MAX_REASON_CHARS:]}"
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _check_sqlite_file(file: Path, create: bool) -> None:
    # MLflow retries an SQLite file that it cannot open for 100 s, with a log line for each attempt.
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
    with atomic_write(folder / "mlflow.json") as draft:
        draft.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
