"""Build the report of a run: the change of every score, matrices, the gate, and example answers.

`harness.terminal.report_table` and `harness.report.html` display it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.gate import GateResult, ScoreForGate, evaluate_gate, gate_outcome
from harness.interfaces.metric import Metric
from harness.report.domain_leakage import LeakedWord, find_leaked_words
from harness.report.finished_run import PreviousRun, load_run_json, parse_estimate
from harness.report.flips import SuiteFlips, find_flips
from harness.report.paired_difference import score_difference
from harness.report.score_change import (
    ScoreChange,
    estimate_of_score,
    items_needed_for_verdict,
    verdict_of_difference,
)
from harness.report.slices import SliceChange, slice_changes
from harness.report.stage_suite_matrix import StageSuiteMatrix, build_matrices
from harness.report.verdict import RunVerdict, build_verdict
from harness.seeding import create_generator
from harness.spec.matrix_summaries import stage_of_suite
from harness.spec.primary_score import primary_margin, primary_score
from harness.statistics.intervals import Estimate
from harness.types import Evaluation, Item, Plan, Score, Suite
from harness.utils.json_files import json_safe, write_json, write_scores

__all__ = [
    "ExampleAnswers",
    "PreviousRun",
    "Report",
    "StageSuiteMatrix",
    "build_report",
    "gate_scores_of_run",
    "write_scores",
]

NUM_EXAMPLES = 3
RUN_INFO_KEYS = ("id", "folder", "seconds", "resumed", "phases", "memory", "uri", "view")


@dataclass(frozen=True)
class ExampleAnswers:
    """One held-out question with its reference, and the answers of the base model (`before`) and the last stage.

    Attributes:
        before_cut: Whether the base model's answer was cut at `max_new_tokens`.
        after_cut: The same after the last stage.
    """

    suite: str
    id: str
    prompt: str
    reference: str
    before: str
    after: str
    before_cut: bool = False
    after_cut: bool = False


@dataclass(frozen=True)
class Report:
    """The result of a run.

    Attributes:
        name: Name of the run.
        seed: Seed of the run.
        run_info: `id`, `folder`, `seconds` and `phases` (see `PhaseClock`) of the last command, whether it `resumed`
            the run, `memory` (stage -> bytes by kind), the tracking `uri` and the address of its `view`, if known.
        stages: Names of the stages, `base` first.
        changes: The change of every score.
        answers: Suite -> `before` and `after` -> finish reason (`eos`, `stop`, `length`, `empty`) -> number of answers.
        slices: The primary score of each slice of the suites that have `slice_by`.
        flips: For each suite the items whose primary score changed.
        leaked_words: Words of the domain that only the tuned model uses in general answers.
        examples: Example answers, drawn by the seed independently of their scores.
        evaluations: One tuple per stage, the base first.
        matrices: The stage × suite matrix of every score, with its summaries.
        gate: The results of the spec's conditions.
        previous_run: Folder of the earlier run that this run continues. Its base and stages come first everywhere.
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
    flips: tuple[SuiteFlips, ...] = ()
    slices: tuple[SliceChange, ...] = ()
    leaked_words: tuple[LeakedWord, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every blocking condition of the gate holds; true without a gate."""
        return gate_outcome(self.gate) == "passed"

    @property
    def verdict(self) -> RunVerdict:
        """What was forgotten, learned and kept."""
        return build_verdict(self.changes, self.gate, self.leaked_words)

    @property
    def scores_by_stage(self) -> dict[str, dict[str, list[float | None]]]:
        """Suite -> score name -> its value after every stage, the base first."""
        scores: dict[str, dict[str, list[float | None]]] = {}
        for change in self.changes:
            values = [None if estimate is None else estimate.value for estimate in change.after_stages]
            scores.setdefault(change.suite, {})[change.name] = values
        return scores

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data for JSON; numbers that are not finite become None."""
        document: dict[str, Any] = json_safe(
            {
                "name": self.name,
                "seed": self.seed,
                "run": {key: self.run_info[key] for key in RUN_INFO_KEYS if key in self.run_info},
                "verdict": asdict(self.verdict),
                "stages": list(self.stages),
                "earlier": self.previous_run,
                "changes": [asdict(change) for change in self.changes],
                "matrix": self.scores_by_stage,
                "forgetting": [asdict(matrix) for matrix in self.matrices],
                "gate": [result.to_json() for result in self.gate],
                "slices": [asdict(each) for each in self.slices],
                "flips": [asdict(each) for each in self.flips],
                "leaked_words": [asdict(each) for each in self.leaked_words],
                "answers": self.answers,
                "examples": [asdict(example) for example in self.examples],
            }
        )
        return document

    def write(self, folder: str | Path) -> None:
        """Write `report.json` and `scores.json` into the folder; each file is replaced atomically."""
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

    Args:
        plan: The plan of the run.
        evaluations: One tuple per stage, the base first.
        metrics: Suite -> metric name -> metric.
        seed: Seed of the examples.
        run_info: The keys of `RUN_INFO_KEYS`, as far as they are known; other keys are ignored.
        gate_conditions: The spec's gate.
        previous_run: The earlier run that this one continues. Its base and stages come first, and its tasks are tasks
            of both.

    Raises:
        ValueError: No stage was evaluated after the base, or stages have different items of a suite.
    """
    if len(evaluations) < 2:
        raise ValueError("a report compares the base model with at least one stage")
    # Join this run with the earlier one that it continues.
    stage_names = ("base", *(stage.name for stage in plan.stages[: len(evaluations) - 1]))
    taught_in_stage: Mapping[str, int] = stage_of_suite(plan)
    if previous_run is not None:
        evaluations = previous_run.join_evaluations(evaluations)
        stage_names = previous_run.join_stage_names(stage_names[1:])
        taught_in_stage = previous_run.join_stage_of_suite(taught_in_stage)
    # Pair the first and the last evaluation of each suite.
    by_stage = [{evaluation.suite: evaluation for evaluation in stage} for stage in evaluations]
    first = {evaluation.suite: evaluation for stage in reversed(evaluations[:-1]) for evaluation in stage}
    last = by_stage[-1]
    suites = [suite for suite in plan.suites if suite.name in first and suite.name in last]
    # Compute the change of each score, the matrices over the stages, and the gate.
    changes = [
        _score_change(suite, score, by_stage, metrics[suite.name], taught_in_stage.get(suite.name))
        for suite in suites
        for score in first[suite.name].scores
    ]
    matrices = build_matrices(plan, evaluations, metrics, taught_in_stage=taught_in_stage)
    gate_results = evaluate_gate(gate_conditions, _gate_scores(changes, matrices, stage_names))
    answers = {
        suite.name: {
            "before": _count_finish_reasons(first[suite.name]),
            "after": _count_finish_reasons(last[suite.name]),
        }
        for suite in suites
    }
    primary = {suite.name: primary_score(suite, metrics[suite.name]) for suite in suites}
    flips = [
        find_flips(first[suite], last[suite], metric_and_score[0], metric_and_score[1])
        for suite, metric_and_score in primary.items()
        if metric_and_score is not None
    ]
    return Report(
        name=plan.name,
        seed=seed,
        run_info={key: run_info[key] for key in RUN_INFO_KEYS if key in run_info},
        stages=stage_names,
        changes=tuple(changes),
        answers={suite: counts for suite, counts in answers.items() if any(counts.values())},
        examples=_draw_examples(suites, first, last, seed),
        evaluations=tuple(evaluations),
        matrices=matrices,
        gate=gate_results,
        previous_run=None if previous_run is None else previous_run.folder,
        flips=tuple(each for each in flips if each is not None),
        slices=tuple(_slices(first, last, primary)),
        leaked_words=find_leaked_words(
            tuple(first.values()), tuple(last.values()), {suite.name: suite.role for suite in suites}
        ),
    )


def gate_scores_from_report(report_json: Mapping[str, Any]) -> dict[str, ScoreForGate]:
    """Return the scores of a `report.json` for a gate.

    Raises:
        KeyError, TypeError: The document is not a report.
    """
    scores = {
        f"{change['suite']}/{change['name']}": ScoreForGate(
            parse_estimate(change["after"]),
            parse_estimate(change["difference"]),
            change["higher_is_better"],
            _first_measured_stage(change["after_stages"], report_json["stages"]),
            change.get("margin"),
            change.get("unusable", ""),
        )
        for change in report_json["changes"]
    }
    unusable = {
        (change["metric"], change["name"]): change["unusable"]
        for change in report_json["changes"]
        if change.get("unusable")
    }
    for matrix in report_json["forgetting"]:
        reason = unusable.get((matrix.get("metric"), matrix.get("score")), "")
        for summary, values in matrix["summaries"].items():
            key = f"{summary}:{matrix.get('called') or matrix['score']}"
            scores[key] = ScoreForGate(parse_estimate(values), None, True, unusable=reason)
    return scores


def gate_scores_of_run(folder: Path) -> dict[str, ScoreForGate]:
    """Load the scores of a finished run for a gate.

    Raises:
        HarnessError: The folder has no report.
    """
    report_json = load_run_json(folder, "report.json")
    try:
        return gate_scores_from_report(report_json)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is not the report of a run ({type(error).__name__}: {error})"
        raise HarnessError(str(folder / "report.json"), what, "use the folder of a finished run") from error


def _gate_scores(
    changes: Sequence[ScoreChange], matrices: Sequence[StageSuiteMatrix], stage_names: Sequence[str]
) -> dict[str, ScoreForGate]:
    scores = {
        f"{change.suite}/{change.name}": ScoreForGate(
            change.after,
            change.difference,
            change.higher_is_better,
            _first_measured_stage(change.after_stages, stage_names),
            change.margin,
            change.unusable,
        )
        for change in changes
    }
    unusable = {(change.metric, change.name): change.unusable for change in changes if change.unusable}
    for matrix in matrices:
        reason = unusable.get((matrix.metric, matrix.score), "")
        scores |= {
            f"{summary}:{matrix.called}": ScoreForGate(estimate, None, True, unusable=reason)
            for summary, estimate in matrix.summaries.items()
        }
    return scores


def _first_measured_stage(values: Sequence[object], stage_names: Sequence[str]) -> str:
    """Return the name of the first stage that has a value; "" for the base, which is the first of them."""
    first = next((index for index, value in enumerate(values) if value is not None), 0)
    return stage_names[first] if first else ""


def _score_change(
    suite: Suite,
    before: Score,
    by_stage: Sequence[Mapping[str, Evaluation]],
    metrics: Mapping[str, Metric],
    taught_in_stage: int | None,
) -> ScoreChange:
    metric = metrics[before.metric]
    evaluations = [stage.get(suite.name) for stage in by_stage]
    scores = [None if evaluation is None else evaluation.matching_score(before) for evaluation in evaluations]
    first, last, after = next(filter(None, evaluations)), evaluations[-1], scores[-1]
    if last is None or after is None or [item.id for item in first.items] != [item.id for item in last.items]:
        raise ValueError(f"suite {suite.name!r}, score {before.name!r}: the stages have different items")

    def change_since(start: Evaluation, earlier: Score) -> Estimate:
        return score_difference((start, earlier), (last, after), metric).difference

    estimate = change_since(first, before)
    primary = primary_score(suite, metrics)
    unusable = before.unusable or after.unusable
    is_primary = primary is not None and primary == (metric, before.name) and not unusable
    margin = primary_margin(suite, metric, before.name, before.value) if is_primary else None
    since_learned = None
    if taught_in_stage and taught_in_stage < len(scores) - 1:
        taught, learned = evaluations[taught_in_stage], scores[taught_in_stage]
        if taught is not None and learned is not None:
            since_learned = change_since(taught, learned)
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
        verdict="unusable" if unusable else verdict_of_difference(estimate, before.higher_is_better),
        needed=None if unusable else items_needed_for_verdict(estimate),
        after_stages=tuple(None if score is None else estimate_of_score(score) for score in scores),
        margin=margin,
        since_learned=since_learned,
        diagnostics=after.diagnostics,
        unusable=unusable,
    )


def _slices(
    first: Mapping[str, Evaluation],
    last: Mapping[str, Evaluation],
    primary: Mapping[str, tuple[Metric, str] | None],
) -> Iterator[SliceChange]:
    for suite, metric_and_name in primary.items():
        if metric_and_name is None:
            continue
        metric, name = metric_and_name
        scores = [
            next((score for score in evaluation.scores if score.name == name), None)
            for evaluation in (first[suite], last[suite])
        ]
        if scores[0] is not None and scores[1] is not None:
            yield from slice_changes((first[suite], scores[0]), (last[suite], scores[1]), metric)


def _count_finish_reasons(evaluation: Evaluation) -> dict[str, int]:
    return dict(sorted(Counter(item.finish for item in evaluation.items if item.finish is not None).items()))


def _draw_examples(
    suites: Sequence[Suite], first: Mapping[str, Evaluation], last: Mapping[str, Evaluation], seed: int
) -> tuple[ExampleAnswers, ...]:
    """Draw example answers of the first domain suite that has any, else of the first suite that has any.

    Choosing the answers that changed most would favor the run, so they are drawn by the seed.
    """
    for suite in sorted(suites, key=lambda suite: suite.role != "domain"):
        last_items = {item.id: item for item in last[suite.name].items}
        pairs = [(item, last_items[item.id]) for item in first[suite.name].items if item.id in last_items]
        answered = [pair for pair in pairs if all(item.answer is not None for item in pair)]
        if answered:
            generator = create_generator(seed, "report", "examples", suite.name)
            indices = generator.sample(range(len(answered)), min(NUM_EXAMPLES, len(answered)))
            return tuple(_example_answers(suite.name, *answered[index]) for index in sorted(indices))
    return ()


def _example_answers(suite: str, before: Item, after: Item) -> ExampleAnswers:
    cut = before.finish == "length", after.finish == "length"
    return ExampleAnswers(
        suite, before.id, before.prompt, before.reference, before.answer or "", after.answer or "", *cut
    )
