"""What a run measures: the base, the model after each stage and within one, and the other weights that a stage offers.

Knows evaluations and where the run keeps them. Trains nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from harness.evaluation import evaluate
from harness.interfaces.metric import Metric
from harness.model import load, save
from harness.report import weight_variants
from harness.report.finished_run import Earlier
from harness.runner import continue_run
from harness.runner.prepare import progress_of
from harness.runner.stage_loop import Course
from harness.runner.staged_model import Chain
from harness.types import Evaluation, Event, Suite, silent
from harness.utils import json_files


class Measuring:
    """The measurements of one run.

    evaluations: those before the first stage and after each, as far as the run has come. earlier: of a run that goes on
    from another, what that one measured. scored: the last stage whose scores the folder holds from before, -1 for none.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        self.evaluations: list[tuple[Evaluation, ...]] = []
        self.earlier: Earlier | None = None
        self.scored = -1
        self._variants: list[dict[str, Any]] = []
        self._untouched: Any = None

    def stage(self, chain: Chain, number: int) -> None:
        """Measure the model after a stage, 0: before the first, and write all scores so far down."""
        found = self.now(chain, number, "predictions")
        self.evaluations.append(found)
        self._tell("evaluated", number, evaluations=found)
        if number == 0 and self.course.ready.location.kind == "run":
            run = Path(self.course.ready.location.path).parent
            self.earlier, told = continue_run.carry(run, found, self.course.spec.document["output"])
            for text in told:
                self._tell("warning", text=text)
        before = len(self.earlier.stages) if self.earlier is not None else 0
        if number < self.scored - before:  # a run that is gone on with may stop again before it is where it was
            return
        names, evaluations = [one.name for one in self.course.ready.plan.stages], tuple(self.evaluations)
        if self.earlier is None:
            json_files.write_scores(evaluations, ["base", *names], self.course.folder.path)
        else:
            json_files.write_scores(
                self.earlier.joined(evaluations), self.earlier.named(names), self.course.folder.path
            )

    def variants(self, chain: Chain, number: int) -> None:
        """Measure the other weights that the stage's mitigations offer, e.g. a sweep between two models."""
        for mitigation, variant in chain.variants():
            found = self.now(chain, number, f"predictions/variants/{mitigation}-{variant}")
            known = self.evaluations if self.earlier is None else self.earlier.joined(self.evaluations)
            scores = weight_variants.scored(found, known, self.course.ready.metrics, seed=self.course.ready.plan.seed)
            stage = self.course.ready.plan.stages[number - 1].name
            self._variants.append({"stage": stage, "mitigation": mitigation, "variant": variant, "scores": scores})
            self._tell("variant", number, mitigation=mitigation, variant=variant, evaluations=found)
            self.course.folder.write("variants.json", {"variants": self._variants})

    def now(
        self,
        chain: Chain,
        number: int,
        folder: str | None,
        suites: Sequence[Suite] | None = None,
        metrics: Mapping[str, Mapping[str, Metric]] | None = None,
    ) -> tuple[Evaluation, ...]:
        """Measure the model as it is.

        folder: what gets the answers; None: in the midst of a stage, of which nothing is kept and no phase is told.
        """
        planned = self.course.ready.plan
        # Without the adapter that is to be trained, the base model's answers are those of every other arm.
        began = number == 0 and self.course.policy is None
        untrained = save.base(chain.net) if began else contextlib.nullcontext()
        with untrained, load.computation(chain.net, planned.train["precision"]):
            return evaluate.evaluate(
                chain.net,
                self.course.ready.tokenizer,
                self.course.ready.template,
                planned.suites if suites is None else suites,
                self.course.ready.data.suites,
                self.course.ready.metrics if metrics is None else metrics,
                stage=number,
                seed=planned.seed,
                max_length=self.course.ready.longest,
                templates=self.course.ready.templates,
                folder=None if folder is None else self.course.folder.path / folder,
                base=self._base(chain) if number or self.course.policy else None,
                progress=silent if folder is None else progress_of(self.course.registry),
            )

    def _base(self, chain: Chain) -> Callable[[], AbstractContextManager[Any]] | None:
        """How to have the base model, for metrics that read it; None where there are none."""
        if not any(one.reads == "base" for suite in self.course.ready.metrics.values() for one in suite.values()):
            return None
        location = continue_run.first(self.course.spec, self.course.ready, progress_of(self.course.registry))
        if (
            save.is_adapted(chain.net)
            and not chain.merged
            and (self.course.policy is None or load.digest(chain.net) == location.digest)
        ):
            return lambda: save.base(chain.net)
        if self._untouched is None:
            self._untouched = self.course.load(location)
        return lambda: contextlib.nullcontext(self._untouched)

    def _tell(self, kind: str, number: int = 0, /, **facts: Any) -> None:
        self.course.registry.observe(Event(kind, number, facts))
