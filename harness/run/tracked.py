"""A run under the eyes of its listeners: the tracker among them, and what ends it told to all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.contracts import Event
from harness.errors import RunError
from harness.ranks import ALONE, Ranks
from harness.registry import Registry
from harness.run.folder import RunFolder
from harness.track import Tracker


@contextmanager
def tracked(
    settings: Mapping[str, Any],
    name: str,
    registry: Registry,
    folder: RunFolder,
    *,
    again: bool = False,
    parent: str | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Tracker]:
    """Within it events go to the run's tracker too. What breaks the run off is told before it is raised.

    settings: the spec's `track`. again: whether the folder's run is gone on with. parent: the MLflow id of the
    experiment's run. ranks: the processes that share the run, and end with it. Raises RunError where a file of the
    run cannot be written or read.
    """
    tracker = Tracker(
        settings,
        name,
        warn=lambda text: registry.observe(Event("warning", data={"text": text})),
        parent=parent,
        again=folder.read("mlflow.json") if again else None,
    )

    def failed(why: str) -> None:
        registry.observe(Event("run_failed", data={"error": why, "folder": str(folder.path)}))

    registry.manager.register(tracker, name="track")
    try:
        with ranks.on_leaving(failed):
            try:
                yield tracker
            except OSError as error:
                what = f"a file of the run cannot be written or read: {error}"
                hint = f"free space or mend the folder, and go on: harness run --resume {folder.path}"
                raise RunError(str(folder.path), what, hint) from error
    except BaseException as error:
        ranks.end()
        failed("interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}")
        raise
    finally:
        registry.manager.unregister(tracker)
