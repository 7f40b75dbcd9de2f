"""The page of an experiment: its arms beside one another, what each gained and forgot, and what can be advised.

Knows what an experiment leaves in its folder (`run_files.ExperimentFiles`); how it is laid out stands in
`templates/experiment.html.jinja`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

from harness.report.arm_comparison import ArmScore, variant_point
from harness.report.html import page
from harness.report.html.plots.gain_vs_forgetting import plot_gain_vs_forgetting
from harness.report.html.plots.svg_canvas import Plot
from harness.report.html.plots.sweep import plot_sweep
from harness.report.html.run_files import ExperimentFiles, load_optional_json
from harness.report.intransigence import Intransigence
from harness.report.recommendation import ArmPoint, classify_forgetting
from harness.report.spec_diff import component_of_key, find_swept_parameter, spec_differences
from harness.utils.json_files import json_safe
from harness.utils.redaction import redact, redact_text


@dataclass(frozen=True)
class ArmExampleAnswers:
    """One held-out question and what the base model and every arm answered. answers: (who, answer)."""

    suite: str
    id: str
    prompt: str
    reference: str
    answers: tuple[tuple[str, str], ...]


def build_experiment_page(experiment: ExperimentFiles) -> tuple[str, list[Plot]]:
    """The page and its plots."""
    plots = list(_plots(experiment))
    unread = list(experiment.unreadable)
    text = page.render_template(
        "experiment.html.jinja",
        experiment=experiment,
        headline=_as_sentence(experiment.recommendation.headline),
        advice=list(_recommendation_statements(experiment)),
        plots=plots,
        notes=_plot_notes(experiment),
        beside=_variant_points(experiment),
        groups=_group_by_score(experiment),
        intransigence=_group_intransigence_by_score(experiment.intransigence),
        comparisons=sum(one.p is not None for one in experiment.scores),
        differences={
            key: _format_values(values, experiment.arms) for key, values in _spec_differences(experiment).items()
        },
        reports={
            arm: f"arms/{quote(arm)}/report.html"
            for arm in experiment.arms
            if (experiment.folder / "arms" / arm / "report.html").is_file()
        },
        asked=_examples_by_arm(experiment, unread),
        unread=unread,
        place=str(experiment.folder.absolute()),
        files=[(name, told) for name, told in _file_descriptions(experiment)],
    )
    return text, plots


def _as_sentence(text: str) -> str:
    """With a full stop; it begins with a capital unless it begins with a key of the spec, which has none."""
    first = text.partition(" ")[0]
    return f"{text if '.' in first or '/' in first else text[:1].upper() + text[1:]}." if text else ""


def _recommendation_statements(experiment: ExperimentFiles) -> Iterator[tuple[str, str]]:
    """(kind of mark, what the advice says below its headline), and which arms have no result."""
    one = experiment.recommendation
    lost = next((point.forgotten for point in experiment.points if point.arm == one.arm), None)
    mark = "even" if lost is None else classify_forgetting(lost)
    alike = f"{one.indistinguishable_clause}." if one.alike else ""  # which begins with the name of an arm
    said = (("few", one.note), (mark, one.cost), ("even", one.enough), ("few", one.rests))
    told = [(kind, _as_sentence(text)) for kind, text in said]
    yield from (line for line in (*told[:2], ("few", alike), *told[2:]) if line[1])
    yield from (("failed", f"no result of {arm}: {why}") for arm, why in experiment.missing.items())


def _plot_notes(experiment: ExperimentFiles) -> dict[str, str]:
    """Plot -> what its marks mean."""
    of_joint = f" Diamond: {experiment.joint}, trained on all tasks together." if experiment.joint else ""
    enough = (
        f" Upright line: {_as_sentence(experiment.recommendation.enough)}" if experiment.recommendation.enough else ""
    )
    return {
        "gain-forgetting": "Bars: 95 % intervals. Filled: no other arm gains as much and forgets less. Square: the "
        f"baseline.{of_joint}",
        "sweep": f"Bars: 95 % intervals; the curve goes through the means.{enough}",
    }


def _plots(experiment: ExperimentFiles) -> Iterator[Plot]:
    if not experiment.points:
        return
    gain, lost, joint = experiment.gain, experiment.forgetting, experiment.joint
    shown = [*experiment.points, *_variant_points(experiment)]
    yield plot_gain_vs_forgetting(shown, gain, lost, experiment.baseline, "gain-forgetting", joint_arm=joint)
    over = find_swept_parameter({arm: spec for arm, spec in experiment.specs.items() if arm != joint})
    if over is None:
        return
    points = [(over.values[one.arm], one) for one in experiment.points if one.arm in over.values]
    if len({value for value, _ in points}) > 1:
        yield plot_sweep(
            sorted(points, key=lambda one: one[0]), gain, lost, over.key, "sweep", percent=over.is_share,
            sufficient_value=experiment.recommendation.value,
            reference_points=[one for one in experiment.points if one.arm not in over.values],
        )  # fmt: skip


def _variant_points(experiment: ExperimentFiles) -> list[ArmPoint]:
    """What was measured beside the result of each arm's last stage; nothing where forgetting is a summary."""
    made = []
    for arm, found in experiment.variants.items():
        for one in found:
            if one.stage == found[-1].stage:
                point = variant_point(one, f"{arm} {one.name}", experiment.gain, experiment.forgetting)
                made += [] if point is None else [point]
    return made


def _group_by_score(experiment: ExperimentFiles) -> list[tuple[str, list[ArmScore]]]:
    """(suite/score, its arms in their order), suite by suite in the order of the file."""
    keys = list(dict.fromkeys((one.suite, one.score) for one in experiment.scores))
    order = {arm: number for number, arm in enumerate(experiment.arms)}
    found = sorted(
        experiment.scores, key=lambda one: (keys.index((one.suite, one.score)), order.get(one.arm, len(order)))
    )
    return [
        (f"{suite}/{score}", list(group))
        for (suite, score), group in groupby(found, key=lambda one: (one.suite, one.score))
    ]


def _group_intransigence_by_score(intransigence: Sequence[Intransigence]) -> list[tuple[str, list[Intransigence]]]:
    scores = dict.fromkeys(one.score for one in intransigence)
    return [(score, [one for one in intransigence if one.score == score]) for score in scores]


def _spec_differences(experiment: ExperimentFiles) -> dict[str, dict[str, Any]]:
    """Key -> arm -> value. What only some arms have and is alike in these, such as options of a mitigation: one row."""
    found = spec_differences({arm: redact(spec) for arm, spec in experiment.specs.items()})
    alike = [key for key, values in found.items() if len({json.dumps(json_safe(one)) for one in values.values()}) == 1]
    made: dict[str, dict[str, Any]] = {}
    for key, values in found.items():
        part = component_of_key(key)
        if key not in alike or sum(component_of_key(one) == part for one in alike) == 1:
            made[key] = values
            continue
        for arm, value in values.items():
            made.setdefault(part, {}).setdefault(arm, {})[key.removeprefix(f"{part}.")] = value
    return made


def _format_values(values: dict[str, Any], arms: tuple[str, ...]) -> list[str | None]:
    """The values as text, arm by arm; None where an arm has none."""
    return [
        None if arm not in values else one if isinstance(one := values[arm], str) else json.dumps(json_safe(one))
        for arm in arms
    ]


def _examples_by_arm(experiment: ExperimentFiles, unreadable: list[str]) -> list[ArmExampleAnswers]:
    """The questions that the arms' reports show, with the answers of all arms that show the same ones."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for arm in experiment.arms:
        for one in (
            load_optional_json(experiment.folder / "arms" / arm / "report.json", unreadable).get("examples") or ()
        ):
            asked = found.setdefault((str(one["suite"]), str(one["id"])), {**one, "answers": []})
            asked["answers"].append((arm, str(one["after"])))
    return [
        ArmExampleAnswers(
            suite, key, str(one["prompt"]), str(one["reference"]), (("base model", str(one["before"])), *one["answers"])
        )
        for (suite, key), one in found.items()
    ]


def _file_descriptions(experiment: ExperimentFiles) -> Iterator[tuple[str, str]]:
    yield "arms.json", "this report as data"
    for arm in experiment.arms:
        yield redact_text(f"arms/{arm}"), "the run of this arm, with its own report"
    yield "plots", "the plots of this page, one SVG each"
