"""What a process beside the main one does: it trains its part of each stage, and measures, keeps and tells nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import train
from harness.ranks import Ranks
from harness.registry import Registry
from harness.run import watching
from harness.run.chain import Chain
from harness.run.course import Course
from harness.run.folder import RunFolder
from harness.run.preparing import prepare
from harness.spec import Spec


@dataclass(frozen=True)
class Task:
    """A run that the main process begins, in its folder. again: whether it is gone on with."""

    spec: Spec
    place: Path
    again: bool


def follow(registry: Registry, ranks: Ranks) -> None:
    """Train beside the main process in every run that it begins, until nothing more comes.

    The listeners hear nothing of it. The main process has proven the data before and put the tokens into the cache.
    """
    registry.silent = True
    task: Task | None
    while (task := ranks.share(None)) is not None:
        ready = prepare(task.spec, registry, ranks=ranks)
        Follower(task.spec, registry, ready, RunFolder(task.place), ranks, task.again).run()


class Follower(Course):
    """A run under way beside the main process."""

    def run(self) -> None:
        """Walk all the way."""
        chain = self._chain()
        for number in range(1, len(self.ready.plan.stages) + 1):
            self._stage(chain, number, None)

    def _watch(self, chain: Chain, number: int, resumed: Path | None) -> watching.Watch | None:
        return None

    def _step(self, number: int, name: str, resumed: Path | None) -> Callable[[int, Mapping[str, float]], None]:
        return train.unheard

    def _conclude(self, chain: Chain, number: int, trained: train.Trained, watch: watching.Watch | None) -> None:
        """As a run that is gone on with does: what the main process kept of the stage is read."""
        totals = self.ranks.share(None)
        assert totals is not None, "the main process shares what the stage came to"
        self._recall(self.folder.stage(self.ready.plan.stages[number - 1].name), chain, totals)
        self.ranks.meet()
