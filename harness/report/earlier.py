"""What an earlier run measured, put before what a run measured that started from its result.

Knows the scores that both have of the same items; not where the earlier run lies, nor how a model is handed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.contracts import Evaluation

Stages = Sequence[tuple[Evaluation, ...]]


@dataclass(frozen=True)
class Earlier:
    """The base and the stages of an earlier run, as far as the run that goes on from it measures the same.

    run: its folder. stages: their names, without the base. evaluations: one tuple a stage, the base first, of the
    suites that are carried on. learned: suite -> the earlier stage, from 1, whose task it is.
    """

    run: str
    stages: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]
    learned: Mapping[str, int]

    def joined(self, own: Stages) -> tuple[tuple[Evaluation, ...], ...]:
        """Both runs as one. own: the run's own evaluations, its start first.

        The earlier run's last stage is where the run started, so that this stands there once: as the earlier run
        measured it, and for suites that are not carried on, which begin here, as the run did at its start.
        """
        carried = {one.suite for one in self.evaluations[-1]}
        begins = (*self.evaluations[-1], *(one for one in own[0] if one.suite not in carried))
        stages = [*self.evaluations[:-1], begins, *own[1:]]
        return tuple(tuple(_at(one, number) for one in stage) for number, stage in enumerate(stages))

    def named(self, own: Sequence[str]) -> tuple[str, ...]:
        """The names of all stages, the base first. own: of the run's stages; one that is taken gets a number."""
        names = ["base", *self.stages]
        for name in own:
            number = 2
            new = name
            while new in names:
                new, number = f"{name}-{number}", number + 1
            names.append(new)
        return tuple(names)

    def owners(self, own: Mapping[str, int]) -> dict[str, int]:
        """Suite -> the stage, from 1, that teaches it, over both runs; the earlier run's word counts first.

        own: the same of the run's own stages alone.
        """
        return {**{suite: len(self.stages) + stage for suite, stage in own.items()}, **self.learned}


def _at(one: Evaluation, stage: int) -> Evaluation:
    return replace(one, stage=stage, scores=tuple(replace(score, stage=stage) for score in one.scores))
