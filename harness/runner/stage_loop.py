"""The model on its way through the stages, as every process that shares the run takes it.

Knows the order within a stage, and what the processes do there at the same time. What is measured, kept and told of it
`single` knows, in the main process; `following` is for those beside it.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.distributed.processes import Ranks
from harness.errors import RunError
from harness.model import load as load_module
from harness.model import locate
from harness.registry import Registry
from harness.runner import continue_run, early_stopping
from harness.runner.folder import RunFolder, load_end, save_end
from harness.runner.prepare import Prepared, prepare, progress_of
from harness.runner.staged_model import Chain
from harness.seeding import derive
from harness.spec.spec import Spec
from harness.training import checkpoint, train_stage


class Course(ABC):
    """One process's way through the stages of a run. again: whether the run is gone on with."""

    def __init__(
        self, spec: Spec, registry: Registry, ready: Prepared, folder: RunFolder, ranks: Ranks, again: bool
    ) -> None:
        self.spec, self.registry, self.ready = spec, registry, ready
        self.folder, self.ranks, self.again = folder, ranks, again

    @property
    def policy(self) -> str | None:
        """What becomes of an earlier run's adapter, see `onward.policy`."""
        return continue_run.policy(self.spec, self.ready)

    def load(self, location: locate.Location | None = None) -> Any:
        """A model as the run computes with it: the one it begins with, or another copy, of `location`."""
        planned = self.ready.plan
        return load_module.load(
            location or self.ready.location,
            planned.model,
            precision=planned.train["precision"],
            progress=progress_of(self.registry),
        )

    def _chain(self) -> Chain:
        """The model with its mitigations, before its first stage."""
        planned = self.ready.plan
        with self.ranks.main_first():  # what is downloaded or converted is so once
            net = self.load()
        train_stage.seed_mitigations(planned.seed)
        return Chain(net, planned, self.registry, self.policy)

    def _stage(self, chain: Chain, number: int, totals: Mapping[str, Any] | None) -> train_stage.Trained:
        """Take the model through a stage. number: from 1. totals: what it came to, where it was trained before."""
        data = self.ready.data.stages[number - 1]
        place = self.folder.stage(data.stage.name)
        totals = self.ranks.share(totals)
        train_stage.seed_mitigations(self._seed(number))
        with self.ranks.main_first(), self._computation(chain):  # the others find the Fisher in the cache
            active = chain.enter(number, self.ready.data.rows)
        if totals is not None:
            return self._recall(place, chain, totals)
        self._begin_alike(place, chain)
        resumed = self.ranks.share(checkpoint.latest(place / "checkpoints") if self.again else None)
        watch = self._watch(chain, number, resumed)
        steps, begun = data.steps(self.ranks.count), checkpoint.reached(resumed)

        def over(step: int) -> bool:
            if step != begun and not early_stopping.due(data.stage, steps, step):
                return False  # nothing was looked at, so there is nothing to ask the main process
            return self.ranks.share(watch is not None and watch(step))

        trained = train_stage.train(
            chain.net,
            self.ready.tokenizer,
            data,
            active,
            seed=self.ready.plan.seed,
            folder=place,
            progress=progress_of(self.registry),
            on_step=self._step(number, data.stage.name, resumed),
            resume=resumed,
            check=over if data.stage.train["evaluate_steps"] is not None else None,
        )
        self._conclude(chain, number, trained, watch)
        return trained

    # -- what the main process and the others do in their own ways -----------------------------------------------------

    @abstractmethod
    def _watch(self, chain: Chain, number: int, resumed: Path | None) -> early_stopping.Watch | None:
        """What evaluates the stage on its way; None where that is not asked for, or not done here."""

    @abstractmethod
    def _step(self, number: int, name: str, resumed: Path | None) -> Callable[[int, Mapping[str, float]], None]:
        """What hears of each logged update."""

    @abstractmethod
    def _conclude(
        self, chain: Chain, number: int, trained: train_stage.Trained, watch: early_stopping.Watch | None
    ) -> None:
        """Bring model and mitigations to the stage's end."""

    # -- within a stage -----------------------------------------------------------------------------------------------

    def _begin_alike(self, place: Path, chain: Chain) -> None:
        """Give every process the weights and states that the main one begins the stage with.

        They were computed alike, but devices of one kind may still round otherwise, and what the mitigations add to
        the gradients is not averaged as these are.
        """
        if self.ranks.count == 1:
            return
        begun = place / "begun"
        if self.ranks.main:
            save_end(begun, chain.net, states_of(chain))
        self.ranks.meet()
        if not self.ranks.main:
            for name, state in load_end(begun, chain.net).items():
                chain.active[name].load_state_dict(state)
        self.ranks.meet()
        if self.ranks.main:
            shutil.rmtree(begun)

    def _recall(self, place: Path, chain: Chain, totals: Mapping[str, Any]) -> train_stage.Trained:
        """What a stage that was trained before came to, the model and its mitigations with it."""
        states = load_end(place / "end", chain.net)
        try:
            trained = train_stage.Trained.of(totals)
            if states.keys() != chain.active.keys():
                raise ValueError("other mitigations are at work")
        except ValueError as error:
            what = "it was written with other mitigations, or by another version"
            raise RunError(str(place / "end"), what, "take this folder away, and the stage is trained again") from error
        for name, state in states.items():
            chain.active[name].load_state_dict(state)
        return trained

    def _seed(self, number: int) -> int:
        """Of what the mitigations of a stage draw: a second adapter does not start where the first one did."""
        seed = self.ready.plan.seed
        return (
            seed
            if number == 1 and self.policy is None
            else derive(seed, "stage", self.ready.plan.stages[number - 1].name)
        )

    def _computation(self, chain: Chain) -> AbstractContextManager[Any]:
        return load_module.computation(chain.net, self.ready.plan.train["precision"])


def states_of(chain: Chain) -> dict[str, Mapping[str, Any]]:
    """The states of the mitigations that are at work."""
    return {name: one.state_dict() for name, one in chain.active.items()}


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

    def _watch(self, chain: Chain, number: int, resumed: Path | None) -> early_stopping.Watch | None:
        return None

    def _step(self, number: int, name: str, resumed: Path | None) -> Callable[[int, Mapping[str, float]], None]:
        return train_stage.unheard

    def _conclude(
        self, chain: Chain, number: int, trained: train_stage.Trained, watch: early_stopping.Watch | None
    ) -> None:
        """As a run that is gone on with does: what the main process kept of the stage is read."""
        totals = self.ranks.share(None)
        assert totals is not None, "the main process shares what the stage came to"
        self._recall(self.folder.stage(self.ready.plan.stages[number - 1].name), chain, totals)
        self.ranks.meet()
