"""The part of a run during which its events go to MLflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError, RunError
from harness.events import RunFailed, TrackingStarted, WarningRaised
from harness.registry import Registry
from harness.runner import resume
from harness.runner.error_file import error_file, write_error
from harness.runner.folder import RunFolder
from harness.tracking.mlflow_store import MlflowPages
from harness.tracking.tracker import MlflowTracker
from harness.utils import stop_signals
from harness.utils.shell_commands import resume_command


def emit_tracking_start(registry: Registry, pages: MlflowPages | None) -> None:
    """Emit where the run or experiment can be watched, if it is tracked."""
    if pages is not None:
        registry.emit(TrackingStarted(url=pages.run, command=pages.command))


@contextmanager
def tracking_session(
    settings: Mapping[str, Any],
    name: str,
    registry: Registry,
    folder: RunFolder,
    *,
    resuming: bool = False,
    parent: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[MlflowTracker]:
    """Track a run in MLflow for the duration of the context.

    An error, of this process or of a worker, is stored in `error.txt`, emitted as `RunFailed` and raised.

    Args:
        settings: The options of the tracker `mlflow`, and `enabled`.
        name: Name of the run.
        registry: Receives the tracker as a listener.
        folder: The folder of the run.
        resuming: Whether the MLflow run in `mlflow.json` is continued.
        parent: MLflow id of the experiment's run.
        processes: The processes that share the run; they end together.

    Raises:
        RunError: If a file of the run cannot be read or written.
    """

    def emit_failure(reason: str, *, interrupted: bool = False) -> None:
        registry.emit(RunFailed(error=reason, folder=str(folder.path), interrupted=interrupted))

    def record_worker_error(error: HarnessError) -> None:
        write_error(folder.path, error)
        emit_failure(str(error))

    tracker = MlflowTracker(
        settings,
        name,
        warn=lambda text: registry.emit(WarningRaised(text=text)),
        parent_run_id=parent,
        resume_info=resume.tracking_info(folder, resuming=resuming),
    )
    registry.manager.register(tracker, name="track")
    try:
        with processes.on_abort(record_worker_error), error_file(folder.path), processes.explained_errors():
            try:
                yield tracker
            except OSError as error:
                what = f"cannot read or write a file of the run: {error}"
                command = resume_command(folder.path, processes.world_size, len(processes.nodes))
                hint = f"free disk space or fix the permissions, then: {command}"
                raise RunError(str(folder.path), what, hint) from error
    except KeyboardInterrupt as error:
        stop_signals.clear()
        processes.mark_ending()
        emit_failure(str(error) or "interrupted", interrupted=True)
        raise
    except BaseException as error:
        processes.mark_ending()
        emit_failure(f"{type(error).__name__}: {error}")
        raise
    finally:
        registry.manager.unregister(tracker)
