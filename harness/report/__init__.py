"""Scores → what the training changed, suite by suite, and three answers to read before and after.

Knows scores and how to compare them over the same items. Does not know the model, the data or the terminal: how a
report looks stands in `harness.report.view`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.contracts import Evaluation, Item, Metric, Plan, Role, Score, Suite
from harness.intervals import Estimate, difference
from harness.report.files import plain, write_json, write_scores
from harness.seeds import derive, generator

if TYPE_CHECKING:
    from rich.console import RenderableType

Verdict = Literal["better", "worse", "no evidence"]

__all__ = ["Change", "Report", "Shown", "Verdict", "make", "render", "write_scores"]

EXAMPLES = 3
RUN_KEYS = ("id", "folder", "seconds", "uri")


@dataclass(frozen=True)
class Change:
    """One score of one suite: before (the base model), after (the last stage), and the paired difference.

    after_stages: the score after every stage, the base first; None where a stage did not evaluate the suite.
    difference: after - before, with the bootstrap's standard error and 95 % interval over the same `n` items.
    verdict: `no evidence` when that interval holds 0; else whether the change is for the better, which for a metric
        where lower is better means down.
    """

    suite: str
    role: Role
    metric: str
    name: str
    signature: str
    higher_is_better: bool
    n: int
    before: Estimate
    after: Estimate
    difference: Estimate
    verdict: Verdict
    after_stages: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class Shown:
    """One held-out question with the reference and the answers of the base model and of the last stage."""

    suite: str
    id: str
    prompt: str
    reference: str
    before: str
    after: str


@dataclass(frozen=True)
class Report:
    """What a run came to.

    stages: their names, `base` first. answers: suite -> `before` and `after` -> how many answers ended for each
    reason (`eos`, `stop`, `length`, `empty`). examples: drawn by the seed, whatever their scores.
    run: `id`, `folder`, `seconds` and the tracking `uri`, as far as they are known.
    """

    name: str
    seed: int
    run: Mapping[str, Any]
    stages: tuple[str, ...]
    changes: tuple[Change, ...]
    answers: Mapping[str, Mapping[str, Mapping[str, int]]]
    examples: tuple[Shown, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...] = field(repr=False)

    @property
    def matrix(self) -> dict[str, dict[str, list[float | None]]]:
        """Suite -> score name -> its value after every stage, the base first."""
        made: dict[str, dict[str, list[float | None]]] = {}
        for change in self.changes:
            values = [None if one is None else one.value for one in change.after_stages]
            made.setdefault(change.suite, {})[change.name] = values
        return made

    def to_json(self) -> dict[str, Any]:
        """The report as plain data for JSON: what is no finite number is None."""
        shown = {
            "name": self.name,
            "seed": self.seed,
            "run": {key: self.run[key] for key in RUN_KEYS if key in self.run},
            "stages": list(self.stages),
            "changes": [asdict(change) for change in self.changes],
            "matrix": self.matrix,
            "answers": self.answers,
            "examples": [asdict(example) for example in self.examples],
        }
        made: dict[str, Any] = plain(shown)
        return made

    def write(self, folder: str | Path) -> None:
        """Write `report.json` and `scores.json` into the folder. A file that is there is whole, old or new."""
        write_scores(self.evaluations, self.stages, folder)
        write_json(Path(folder) / "report.json", self.to_json(), indent=2)


def make(
    plan: Plan,
    evaluations: Sequence[tuple[Evaluation, ...]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    seed: int,
    run: Mapping[str, Any],
) -> Report:
    """Compare the last stage with the base model, item by item.

    evaluations: one tuple a stage, the base model first. metrics: suite -> metric name -> instance, for `aggregate`.
    run: `id`, `folder`, `seconds`, `uri`; anything else in it is left out of the report.
    Raises ValueError when no stage was evaluated after the base, or when stages saw different items of a suite.
    """
    if len(evaluations) < 2:
        raise ValueError("a report compares the base model with at least one stage")
    by_stage = [{one.suite: one for one in stage} for stage in evaluations]
    first, last = by_stage[0], by_stage[-1]
    suites = [suite for suite in plan.suites if suite.name in first and suite.name in last]
    changes = [
        _change(suite, score, by_stage, metrics[suite.name][score.metric], seed)
        for suite in suites
        for score in first[suite.name].scores
    ]
    answers = {
        suite.name: {"before": _endings(first[suite.name]), "after": _endings(last[suite.name])} for suite in suites
    }
    return Report(
        name=plan.name,
        seed=seed,
        run={key: run[key] for key in RUN_KEYS if key in run},
        stages=("base", *(stage.name for stage in plan.stages[: len(evaluations) - 1])),
        changes=tuple(changes),
        answers={suite: ends for suite, ends in answers.items() if any(ends.values())},
        examples=_examples(suites, first, last, seed),
        evaluations=tuple(evaluations),
    )


def render(report: Report) -> RenderableType:
    """The report for a terminal: the table, the examples, where the run's folder is and what to type next.

    Print it with `crop=False`: commands are not wrapped, and a long one would lose its end.
    """
    from harness.report.view import View

    return View(report)


def _change(
    suite: Suite, before: Score, by_stage: Sequence[Mapping[str, Evaluation]], metric: Metric, seed: int
) -> Change:
    path = [_find(stage.get(suite.name), before) for stage in by_stage]
    after = path[-1]
    first, last = by_stage[0][suite.name], by_stage[-1][suite.name]
    if after is None or [item.id for item in first.items] != [item.id for item in last.items]:
        raise ValueError(f"suite {suite.name!r}, score {before.name!r}: the stages did not see the same items")
    estimate = difference(
        before.statistics,
        after.statistics,
        lambda total: metric.aggregate(before.name, total),
        seed=derive(seed, "report", suite.name),
    )
    return Change(
        suite=suite.name,
        role=suite.role,
        metric=before.metric,
        name=before.name,
        signature=before.signature,
        higher_is_better=before.higher_is_better,
        n=estimate.n,
        before=_estimate(before),
        after=_estimate(after),
        difference=estimate,
        verdict=_verdict(estimate, before.higher_is_better),
        after_stages=tuple(None if one is None else _estimate(one) for one in path),
    )


def _find(evaluation: Evaluation | None, like: Score) -> Score | None:
    scores = () if evaluation is None else evaluation.scores
    return next((one for one in scores if (one.metric, one.name) == (like.metric, like.name)), None)


def _estimate(score: Score) -> Estimate:
    return Estimate(value=score.value, stderr=score.stderr, low=score.low, high=score.high, n=score.n)


def _verdict(estimate: Estimate, higher_is_better: bool) -> Verdict:
    # Written so that an interval that is no number counts as holding 0.
    if estimate.low > 0.0:
        return "better" if higher_is_better else "worse"
    if estimate.high < 0.0:
        return "worse" if higher_is_better else "better"
    return "no evidence"


def _endings(evaluation: Evaluation) -> dict[str, int]:
    return dict(sorted(Counter(item.finish for item in evaluation.items if item.finish is not None).items()))


def _examples(
    suites: Sequence[Suite], first: Mapping[str, Evaluation], last: Mapping[str, Evaluation], seed: int
) -> tuple[Shown, ...]:
    """Answers of the first domain suite that has any, else of the first suite that has any.

    Choosing the answers that changed most would flatter the run, so the seed chooses.
    """
    for suite in sorted(suites, key=lambda one: one.role != "domain"):
        after = {item.id: item for item in last[suite.name].items}
        pairs = [(item, after[item.id]) for item in first[suite.name].items if item.id in after]
        answered = [pair for pair in pairs if all(item.answer is not None for item in pair)]
        if answered:
            chooser = generator(seed, "report", "examples", suite.name)
            chosen = chooser.sample(range(len(answered)), min(EXAMPLES, len(answered)))
            return tuple(_shown(suite.name, *answered[index]) for index in sorted(chosen))
    return ()


def _shown(suite: str, before: Item, after: Item) -> Shown:
    return Shown(suite, before.id, before.prompt, before.reference, before.answer or "", after.answer or "")
