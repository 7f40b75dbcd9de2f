"""Scores → what the training changed, suite by suite, and three answers to read before and after.

Knows scores and how to compare them over the same items. Does not know the model, the data or the terminal: how a
report looks stands in `harness.terminal.report_table`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

from harness import gate as gate_module
from harness.errors import HarnessError
from harness.gate import GateResult, ScoreForGate
from harness.interfaces.metric import Metric
from harness.report.finished_run import PreviousRun, load_run_json
from harness.report.stage_suite_matrix import StageSuiteMatrix, build_matrices
from harness.seeding import create_generator, derive_seed
from harness.spec.matrix_summaries import stage_of_suite
from harness.statistics.intervals import Estimate, difference
from harness.types import Evaluation, Item, Plan, Role, Score, Suite
from harness.utils.json_files import json_safe, write_json, write_scores

if TYPE_CHECKING:
    pass

Verdict = Literal["better", "worse", "no evidence", "too few items"]

__all__ = [
    "ExampleAnswers",
    "PreviousRun",
    "Report",
    "ScoreChange",
    "StageSuiteMatrix",
    "Verdict",
    "build_report",
    "estimate_of_score",
    "gate_scores_of_run",
    "verdict_of_difference",
    "write_scores",
]

MIN_ITEMS = 30
"""Items below which no verdict is given: percentile intervals over fewer are too narrow to be trusted."""

NUM_EXAMPLES = 3
RUN_INFO_KEYS = ("id", "folder", "seconds", "uri")


@dataclass(frozen=True)
class ScoreChange:
    """One score of one suite: before (the base model), after (the last stage), and the paired difference.

    A run that goes on from an earlier one has the earlier base model before, or, of a suite that the earlier run did
    not have, the model that it started from.

    after_stages: the score after every stage, the base first; None where a stage did not evaluate the suite.
    difference: after - before, with its standard error and 95 % interval over the same `n` items (see
        `intervals.difference`).
    verdict: `too few items` below 30 of them; `no evidence` when the interval holds 0; else whether the change is for
        the better, which for a metric where lower is better means down.
    needed: where there is no verdict for the better or worse, about how many items would give one if the change is as
        large as it looks; None where it looks like none at all.
    """

    suite: str
    role: Role
    metric: str
    name: str
    signature: str
    higher_is_better: bool | None
    n: int
    before: Estimate
    after: Estimate
    difference: Estimate
    verdict: Verdict
    needed: int | None
    after_stages: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class ExampleAnswers:
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
    run_info: `id`, `folder`, `seconds` and the tracking `uri`, as far as they are known.
    matrices: the stage × suite matrix of every score, with what continual learning draws from it.
    gate: the spec's conditions, judged. previous_run: the folder of the run that it goes on from, with whose base and
    stages everything here begins.
    """

    name: str
    seed: int
    run_info: Mapping[str, Any]
    stages: tuple[str, ...]
    changes: tuple[ScoreChange, ...]
    answers: Mapping[str, Mapping[str, Mapping[str, int]]]
    examples: tuple[ExampleAnswers, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...] = field(repr=False)
    matrices: tuple[StageSuiteMatrix, ...] = ()
    gate: tuple[GateResult, ...] = ()
    previous_run: str | None = None

    @property
    def passed(self) -> bool:
        """Whether every condition of the gate was met; true of a spec without one."""
        return all(one.passed for one in self.gate)

    @property
    def scores_by_stage(self) -> dict[str, dict[str, list[float | None]]]:
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
            "run": {key: self.run_info[key] for key in RUN_INFO_KEYS if key in self.run_info},
            "stages": list(self.stages),
            "earlier": self.previous_run,
            "changes": [asdict(change) for change in self.changes],
            "matrix": self.scores_by_stage,
            "forgetting": [asdict(one) for one in self.matrices],
            "gate": [asdict(one) for one in self.gate],
            "answers": self.answers,
            "examples": [asdict(example) for example in self.examples],
        }
        made: dict[str, Any] = json_safe(shown)
        return made

    def write(self, folder: str | Path) -> None:
        """Write `report.json` and `scores.json` into the folder. A file that is there is whole, old or new."""
        write_scores(self.evaluations, self.stages, folder)
        write_json(Path(folder) / "report.json", self.to_json(), indent=2)


def build_report(
    plan: Plan,
    evaluations: Sequence[tuple[Evaluation, ...]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    seed: int,
    run_info: Mapping[str, Any],
    gate_conditions: Sequence[Mapping[str, Any]] = (),
    previous_run: PreviousRun | None = None,
) -> Report:
    """Compare the last stage with the base model, item by item.

    evaluations: one tuple a stage, the base model first. metrics: suite -> metric name -> instance, for `aggregate`.
    run_info: `id`, `folder`, `seconds`, `uri`; anything else in it is left out of the report. gate_conditions: the
    spec's gate. previous_run: the run whose result this one started from; its base and stages come first, its tasks are
    tasks of both. Raises ValueError when no stage was evaluated after the base, or when stages saw different items of a
    suite.
    """
    if len(evaluations) < 2:
        raise ValueError("a report compares the base model with at least one stage")
    names, teaches = ("base", *(stage.name for stage in plan.stages[: len(evaluations) - 1])), stage_of_suite(plan)
    if previous_run is not None:
        evaluations, names = previous_run.join_evaluations(evaluations), previous_run.join_stage_names(names[1:])
        teaches = previous_run.join_stage_of_suite(teaches)
    by_stage = [{one.suite: one for one in stage} for stage in evaluations]
    first = {one.suite: one for stage in reversed(evaluations[:-1]) for one in stage}
    last = by_stage[-1]
    suites = [suite for suite in plan.suites if suite.name in first and suite.name in last]
    changes = [
        _score_change(suite, score, first[suite.name], by_stage, metrics[suite.name][score.metric], seed)
        for suite in suites
        for score in first[suite.name].scores
    ]
    answers = {
        suite.name: {
            "before": _count_finish_reasons(first[suite.name]),
            "after": _count_finish_reasons(last[suite.name]),
        }
        for suite in suites
    }
    found = build_matrices(plan, evaluations, metrics, seed=seed, taught_in_stage=teaches)
    return Report(
        name=plan.name,
        seed=seed,
        run_info={key: run_info[key] for key in RUN_INFO_KEYS if key in run_info},
        stages=names,
        changes=tuple(changes),
        answers={suite: ends for suite, ends in answers.items() if any(ends.values())},
        examples=_draw_examples(suites, first, last, seed),
        evaluations=tuple(evaluations),
        matrices=found,
        gate=gate_module.evaluate_gate(gate_conditions, _gate_scores(changes, found, names)) if gate_conditions else (),
        previous_run=None if previous_run is None else previous_run.folder,
    )


def gate_scores_from_report(report_json: Mapping[str, Any]) -> dict[str, ScoreForGate]:
    """The scores of a `report.json`, as a gate sees them. Raises KeyError or TypeError for a file that is none."""

    def read(given: Mapping[str, Any]) -> Estimate:
        value, stderr, low, high = (
            float("nan") if given[key] is None else float(given[key]) for key in ("value", "stderr", "low", "high")
        )
        return Estimate(value, stderr, low, high, int(given["n"]), given["method"])

    found = {
        f"{one['suite']}/{one['name']}": ScoreForGate(
            read(one["after"]),
            read(one["difference"]),
            one["higher_is_better"],
            _first_measured_stage(one["after_stages"], report_json["stages"]),
        )
        for one in report_json["changes"]
    }
    for one in report_json["forgetting"]:
        for name, given in one["summaries"].items():
            found[f"{name}:{one.get('called') or one['score']}"] = ScoreForGate(read(given), None, True)
    return found


def gate_scores_of_run(folder: Path) -> dict[str, ScoreForGate]:
    """The scores that a finished run left in its folder. Raises HarnessError when it holds no report."""
    found = load_run_json(folder, "report.json")
    try:
        return gate_scores_from_report(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is no report of a run ({type(error).__name__}: {error})"
        raise HarnessError(str(folder / "report.json"), what, "name the folder of a finished run") from error


def _gate_scores(
    changes: Sequence[ScoreChange], matrices: Sequence[StageSuiteMatrix], stages: Sequence[str]
) -> dict[str, ScoreForGate]:
    made = {
        f"{one.suite}/{one.name}": ScoreForGate(
            one.after, one.difference, one.higher_is_better, _first_measured_stage(one.after_stages, stages)
        )
        for one in changes
    }
    for matrix in matrices:
        made |= {f"{name}:{matrix.called}": ScoreForGate(one, None, True) for name, one in matrix.summaries.items()}
    return made


def _first_measured_stage(values: Sequence[object], stage_names: Sequence[str]) -> str:
    """The first stage that was measured by a score; "" where that is the base, the first of them."""
    first = next((number for number, value in enumerate(values) if value is not None), 0)
    return stage_names[first] if first else ""


def _score_change(
    suite: Suite,
    before: Score,
    first_evaluation: Evaluation,
    by_stage: Sequence[Mapping[str, Evaluation]],
    metric: Metric,
    seed: int,
) -> ScoreChange:
    seen = [stage.get(suite.name) for stage in by_stage]
    path = [None if one is None else one.matching_score(before) for one in seen]
    after = path[-1]
    last = by_stage[-1][suite.name]
    if after is None or [item.id for item in first_evaluation.items] != [item.id for item in last.items]:
        raise ValueError(f"suite {suite.name!r}, score {before.name!r}: the stages did not see the same items")
    estimate = difference(
        before.statistics,
        after.statistics,
        lambda total: metric.aggregate(before.name, total),
        seed=derive_seed(seed, "report", suite.name),
        ratio=metric.is_ratio(before.name),
    )
    return ScoreChange(
        suite=suite.name,
        role=suite.role,
        metric=before.metric,
        name=before.name,
        signature=before.signature,
        higher_is_better=before.higher_is_better,
        n=estimate.n,
        before=estimate_of_score(before),
        after=estimate_of_score(after),
        difference=estimate,
        verdict=verdict_of_difference(estimate, before.higher_is_better),
        needed=items_needed_for_verdict(estimate),
        after_stages=tuple(None if one is None else estimate_of_score(one) for one in path),
    )


def estimate_of_score(score: Score) -> Estimate:
    """A score without what it is of."""
    return Estimate(score.value, score.stderr, score.low, score.high, score.n, score.method)


def verdict_of_difference(difference: Estimate, higher_is_better: bool | None) -> Verdict:
    """What a difference and its interval come to; see `ScoreChange`."""
    if difference.n < MIN_ITEMS:
        return "too few items"
    if higher_is_better is None:
        return "no evidence"  # neither direction of such a score is better
    # Written so that an interval that is no number counts as holding 0.
    if difference.low > 0.0:
        return "better" if higher_is_better else "worse"
    if difference.high < 0.0:
        return "worse" if higher_is_better else "better"
    return "no evidence"


def items_needed_for_verdict(difference: Estimate, comparisons: int = 1) -> int | None:
    """About how many items would give a verdict, if the difference is as large as it looks; see `ScoreChange`.

    The interval's half is about 1.96 standard errors, and these fall with the root of the number of items. Of several
    comparisons each must stand at 5 % divided by their number, which is never less than Holm's correction asks for.
    """
    wide = 1.96 if comparisons == 1 else NormalDist().inv_cdf(1 - 0.025 / comparisons)
    settled = difference.n >= MIN_ITEMS and (difference.low > 0 or difference.high < 0)
    if (settled and comparisons == 1) or not difference.value or not math.isfinite(difference.stderr):
        return None
    return max(MIN_ITEMS, math.ceil(difference.n * (wide * difference.stderr / difference.value) ** 2))


def _count_finish_reasons(evaluation: Evaluation) -> dict[str, int]:
    return dict(sorted(Counter(item.finish for item in evaluation.items if item.finish is not None).items()))


def _draw_examples(
    suites: Sequence[Suite], first: Mapping[str, Evaluation], last: Mapping[str, Evaluation], seed: int
) -> tuple[ExampleAnswers, ...]:
    """Answers of the first domain suite that has any, else of the first suite that has any.

    Choosing the answers that changed most would flatter the run, so the seed chooses.
    """
    for suite in sorted(suites, key=lambda one: one.role != "domain"):
        after = {item.id: item for item in last[suite.name].items}
        pairs = [(item, after[item.id]) for item in first[suite.name].items if item.id in after]
        answered = [pair for pair in pairs if all(item.answer is not None for item in pair)]
        if answered:
            chooser = create_generator(seed, "report", "examples", suite.name)
            chosen = chooser.sample(range(len(answered)), min(NUM_EXAMPLES, len(answered)))
            return tuple(_example_answers(suite.name, *answered[index]) for index in sorted(chosen))
    return ()


def _example_answers(suite: str, before: Item, after: Item) -> ExampleAnswers:
    return ExampleAnswers(suite, before.id, before.prompt, before.reference, before.answer or "", after.answer or "")
