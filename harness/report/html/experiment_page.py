"""The page of an experiment: gain and forgetting of its arms, the recommendation, and every score.

The layout is in `templates/experiment.html.jinja`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

from harness.errors import HarnessError
from harness.report.arm_comparison import ArmScore, variant_point
from harness.report.arm_score import count_hypotheses
from harness.report.display_text import format_interval
from harness.report.html import page
from harness.report.html.plots.equal_gain import plot_equal_gain
from harness.report.html.plots.gain_vs_forgetting import plot_gain_vs_forgetting
from harness.report.html.plots.svg_canvas import Plot
from harness.report.html.plots.sweep import SweepAxis, plot_sweep
from harness.report.html.run_files import ExperimentFiles, load_optional_json
from harness.report.intransigence import Intransigence
from harness.report.recommendation import ArmPoint, classify_forgetting
from harness.report.spec_diff import component_of_key, find_swept_parameter, spec_differences
from harness.report.verdict import Outcome, Statement
from harness.spec.arms import expand_arms
from harness.statistics.intervals import Estimate
from harness.statistics.seeds import SeedSpread
from harness.utils.json_files import json_safe
from harness.utils.redaction import redact, redact_text


@dataclass(frozen=True)
class ArmExampleAnswers:
    """One held-out question with the answers of the base model and of every arm.

    Attributes:
        answers: (name of the model, answer), the base model first.
    """

    suite: str
    id: str
    prompt: str
    reference: str
    answers: tuple[tuple[str, str], ...]


def build_experiment_page(experiment: ExperimentFiles) -> tuple[str, list[Plot]]:
    """Build the page of an experiment and its plots."""
    plots = list(_plots(experiment))
    unreadable = list(experiment.unreadable)
    text = page.render_template(
        "experiment.html.jinja",
        experiment=experiment,
        headline=_as_sentence(experiment.recommendation.headline),
        statements=list(_recommendation_statements(experiment)),
        plots=plots,
        plot_notes=_plot_notes(experiment),
        variant_points=_variant_points(experiment),
        scores=_group_by_score(experiment),
        intransigence=_group_intransigence_by_score(experiment.intransigence),
        num_comparisons=count_hypotheses(experiment.scores),
        differences=_difference_table(experiment),
        reports={
            arm: [
                (seed, f"arms/{quote(run)}/report.html")
                for seed, run in experiment.runs[arm].items()
                if (experiment.folder / "arms" / run / "report.html").is_file()
            ]
            for arm in experiment.arms
        },
        has_seeds=_has_seeds(experiment),
        seed_rows=list(_seed_rows(experiment)),
        examples=_examples_by_arm(experiment, unreadable),
        unreadable=unreadable,
        folder=str(experiment.folder.absolute()),
        files=list(_file_descriptions(experiment)),
    )
    return text, plots


def _has_seeds(experiment: ExperimentFiles) -> bool:
    return any(len(point.seeds) > 1 for point in experiment.points)


def _seed_rows(experiment: ExperimentFiles) -> Iterator[tuple[str, str, Estimate, SeedSpread, tuple[int, ...]]]:
    """Yield (arm, quantity, estimate over items and seeds, spread, seeds) of each arm with several seeds."""
    for point in experiment.points:
        for quantity, estimate, spread in (
            ("gain", point.gain, point.gain_spread),
            ("forgotten", point.forgotten, point.forgotten_spread),
        ):
            if spread is not None:
                yield point.arm, quantity, estimate, spread, point.seeds


def _difference_table(experiment: ExperimentFiles) -> tuple[list[str], list[tuple[str, list[str | None]]]]:
    """Return the spec keys in which arms differ, and for each arm its values; both are empty without a difference."""
    differences = _spec_differences(experiment)
    columns = [_format_values(values, experiment.arms) for values in differences.values()]
    rows = [(arm, [column[index] for column in columns]) for index, arm in enumerate(experiment.arms)]
    return list(differences), rows if differences else []


def _as_sentence(text: str) -> str:
    """Add a period, and a capital unless the text starts with a spec key."""
    first_word = text.partition(" ")[0]
    is_key = "." in first_word or "/" in first_word
    return f"{text if is_key else text[:1].upper() + text[1:]}." if text else ""


def _recommendation_statements(experiment: ExperimentFiles) -> Iterator[Statement]:
    """Yield the parts of the recommendation that are not empty, and the arms without a result."""
    recommendation = experiment.recommendation
    forgotten = next((point.forgotten for point in experiment.points if point.arm == recommendation.arm), None)
    outcome: Outcome = "even" if forgotten is None else classify_forgetting(forgotten)
    alike = recommendation.indistinguishable_clause
    gate = experiment.gate
    gate_outcome: Outcome = "passed" if gate is not None and gate.outcome == "passed" else "failed"
    statements = (
        Statement("few", _as_sentence(recommendation.note)),
        Statement(outcome, _as_sentence(recommendation.cost)),
        Statement("few", f"{alike}." if alike else ""),  # begins with the name of an arm: no capital
        Statement("few", _as_sentence(recommendation.unclear)),
        *_best_control_statements(experiment),
        Statement("even", _as_sentence(recommendation.enough)),
        Statement("few", _as_sentence(recommendation.rests)),
        Statement(gate_outcome, "" if gate is None else f"{gate.text}."),
    )
    yield from (statement for statement in statements if statement.text)
    yield from (Statement("failed", f"no result of {arm}: {reason}") for arm, reason in experiment.missing.items())


def _best_control_statements(experiment: ExperimentFiles) -> Iterator[Statement]:
    """Yield what is known of the recommended arm against the best control, unless it is a control itself."""
    outcomes: dict[str, Outcome] = {"better": "better", "worse": "worse", "no evidence": "even"}
    verdicts = {
        "better": "forgets less than the best control",
        "worse": "forgets more than the best control",
        "no evidence": "is not shown to forget less than the best control",
        "too few items": "has too few items for a comparison with the best control",
    }
    for entry in experiment.best_control:
        if entry.arm == experiment.recommendation.arm:
            value, bounds = format_interval(entry.forgotten)
            text = f"{entry.arm!r} {verdicts[entry.verdict]}, {entry.control!r}: difference {value} {bounds}."
            yield Statement(outcomes.get(entry.verdict, "few"), text)


def _plot_notes(experiment: ExperimentFiles) -> dict[str, str]:
    """Return name of a plot -> meaning of its marks."""
    joint = f" Diamond: {experiment.joint}, trained on all tasks together." if experiment.joint else ""
    sufficient = _as_sentence(experiment.recommendation.enough)
    dots = " Small dots: seeds." if _has_seeds(experiment) else ""
    return {
        "gain-forgetting": "Bars: 95 % intervals. Filled: no other arm gains as much and forgets less. Square: the "
        f"baseline.{joint}{dots}",
        "equal-gain": "Each line is a run, from the base model through its evaluations. Dotted: the gain that all runs "
        "reach. Diamonds: the forgetting there, with 95 % intervals.",
        "sweep": f"Bars: 95 % intervals; the curve goes through the means.{dots}"
        + (f" Vertical line: {sufficient}" if sufficient else ""),
    }


def _plots(experiment: ExperimentFiles) -> Iterator[Plot]:
    if not experiment.points:
        return
    gain, forgetting, joint = experiment.gain, experiment.forgetting, experiment.joint
    points = [*experiment.points, *_variant_points(experiment)]
    yield plot_gain_vs_forgetting(points, gain, forgetting, experiment.baseline, "gain-forgetting", joint_arm=joint)
    if experiment.equal_gain is not None and experiment.equal_gain.gain is not None:
        yield plot_equal_gain(experiment.equal_gain, gain, forgetting, "equal-gain")
    parameter = find_swept_parameter({arm: spec for arm, spec in experiment.specs.items() if arm != joint})
    if parameter is None:
        return
    swept = [(parameter.values[point.arm], point) for point in experiment.points if point.arm in parameter.values]
    if len({value for value, _ in swept}) > 1:
        yield plot_sweep(
            sorted(swept, key=lambda entry: entry[0]),
            gain,
            forgetting,
            SweepAxis(parameter.key, parameter.is_share, experiment.recommendation.value),
            "sweep",
            reference_points=[point for point in experiment.points if point.arm not in parameter.values],
        )


def _variant_points(experiment: ExperimentFiles) -> list[ArmPoint]:
    """Return the weight variants of each run's last stage; none if forgetting is measured by a summary."""
    points = []
    for arm, variants in experiment.variants.items():
        for variant in variants:
            if variant.stage == variants[-1].stage:
                name = f"{arm} {variant.name}"
                points.append(variant_point(variant, name, experiment.gain, experiment.forgetting))
    return [point for point in points if point is not None]


def _group_by_score(experiment: ExperimentFiles) -> list[tuple[str, list[ArmScore]]]:
    """Return (`suite/score`, scores of the arms), scores and arms in the order of the files."""
    keys = list(dict.fromkeys((score.suite, score.score) for score in experiment.scores))
    arm_order = {arm: index for index, arm in enumerate(experiment.arms)}
    ordered = sorted(
        experiment.scores,
        key=lambda score: (keys.index((score.suite, score.score)), arm_order.get(score.arm, len(arm_order))),
    )
    return [
        (f"{suite}/{name}", list(group))
        for (suite, name), group in groupby(ordered, key=lambda score: (score.suite, score.score))
    ]


def _group_intransigence_by_score(intransigence: Sequence[Intransigence]) -> list[tuple[str, list[Intransigence]]]:
    scores = dict.fromkeys(entry.score for entry in intransigence)
    return [(score, [entry for entry in intransigence if entry.score == score]) for score in scores]


def _spec_differences(experiment: ExperimentFiles) -> dict[str, dict[str, Any]]:
    """Return spec key -> arm -> value.

    Keys that only some arms have, with equal values in these, are merged into one row for their component. If an arm
    adds the component, the row has the options that the experiment's spec sets, without defaults.
    """
    values_by_key = spec_differences({arm: redact(spec) for arm, spec in experiment.specs.items()})
    values_by_key.pop("seed", None)  # arms do not differ in their seeds
    uniform = [
        key
        for key, values in values_by_key.items()
        if len({json.dumps(json_safe(value)) for value in values.values()}) == 1
    ]
    merged: dict[str, dict[str, Any]] = {}
    for key, values in values_by_key.items():
        component = component_of_key(key)
        if key not in uniform or sum(component_of_key(other) == component for other in uniform) == 1:
            merged[key] = values
            continue
        for arm, value in values.items():
            merged.setdefault(component, {}).setdefault(arm, {})[key.removeprefix(f"{component}.")] = value
    for arm, changes in _arm_changes(experiment).items():
        for key, value in redact(changes).items():
            if isinstance(value, Mapping) and isinstance(merged.get(key, {}).get(arm), dict):
                merged[key][arm] = {name: each for name, each in value.items() if f"{key}.{name}" not in merged}
    return merged


def _arm_changes(experiment: ExperimentFiles) -> Mapping[str, Mapping[str, Any]]:
    """Return arm -> the keys that it changes; {} if the experiment's spec is missing or of another version."""
    arms_spec = load_optional_json(experiment.folder / "spec.json", []).get("arms")
    try:
        return {arm.method: arm.changes for arm in expand_arms(arms_spec, "arms")} if arms_spec else {}
    except (HarnessError, KeyError, TypeError, AttributeError):
        return {}


def _format_values(values: dict[str, Any], arms: tuple[str, ...]) -> list[str | None]:
    """Format the value of each arm; None where an arm does not have the key."""
    texts: list[str | None] = []
    for arm in arms:
        value = values.get(arm)
        texts.append(None if arm not in values else value if isinstance(value, str) else json.dumps(json_safe(value)))
    return texts


def _examples_by_arm(experiment: ExperimentFiles, unreadable: list[str]) -> list[ArmExampleAnswers]:
    """Return the questions in the arms' reports, each with the answers of all arms that have it."""
    examples: dict[tuple[str, str], dict[str, Any]] = {}
    for arm in experiment.arms:
        first_run = next(iter(experiment.runs[arm].values()))
        report = load_optional_json(experiment.folder / "arms" / first_run / "report.json", unreadable)
        for example in report.get("examples") or ():
            key = str(example["suite"]), str(example["id"])
            entry = examples.setdefault(key, {**example, "answers": [("base model", str(example["before"]))]})
            entry["answers"].append((arm, str(example["after"])))
    return [
        ArmExampleAnswers(suite, item_id, str(entry["prompt"]), str(entry["reference"]), tuple(entry["answers"]))
        for (suite, item_id), entry in examples.items()
    ]


def _file_descriptions(experiment: ExperimentFiles) -> Iterator[tuple[str, str]]:
    yield "arms.json", "this report as data"
    for by_seed in experiment.runs.values():
        for run in by_seed.values():
            yield redact_text(f"arms/{run}"), "the run of this arm, with its own report"
    yield "plots", "the plots of this page, one SVG each"
