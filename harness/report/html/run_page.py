"""The page of one run: which sections it has, and the plots in them.

Knows what a run leaves in its folder (`run_files.RunFiles`); how it is laid out stands in `templates/run.html.jinja`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from harness.report.arm_comparison import variant_point
from harness.report.html import page, stage_curves
from harness.report.html.headline import build_run_headline
from harness.report.html.plots.bars import LengthBin, plot_length_histogram, plot_source_shares
from harness.report.html.plots.curves import Curve, plot_curves, steps_and_values
from harness.report.html.plots.heatmap import plot_heatmap
from harness.report.html.plots.svg_canvas import Plot
from harness.report.html.plots.sweep import plot_sweep
from harness.report.html.run_files import RunFiles, load_items_by_id
from harness.report.recommendation import ArmPoint
from harness.report.run_report import NUM_EXAMPLES, ExampleAnswers
from harness.seeding import create_generator
from harness.utils.redaction import redact, redact_text

SUMMARY_DESCRIPTIONS = {
    "average_accuracy": "mean over tasks at the end",
    "learning_accuracy": "mean over tasks, each right after its own stage",
    "backward_transfer": "change of earlier tasks since their own stage (BWT); below 0 is forgetting",
    "forward_transfer": "later tasks just before their own stage, against the base (FWT)",
    "forgetting": "best before the last stage, less the end (Chaudhry); above 0 is forgetting",
    "forgetting_since_learned": "right after its own stage, less the end; above 0 is forgetting",
    "forgetting_from_best": "best of all since its own stage, less the end; never below 0",
    "general_ability_delta": "change of the general suites since the base (TRACE)",
    "relative_forgetting": "mean loss of the general suites against the base, in per cent (Luo)",
}
LEVEL_SUMMARIES = ("average_accuracy", "learning_accuracy")
"""The summaries that are no differences."""

FILE_DESCRIPTIONS = {
    "report.json": "this report as data",
    "scores.json": "every score with the statistics of its items",
    "spec.json": "the filled spec: the run in full",
    "environment.json": "versions, device, git state, digests",
    "data.json": "what it was trained on: counts, shares, digests",
    "variants.json": "scores of other weights that a mitigation offered",
    "predictions": "every item of every suite, before and after, as JSON lines",
    "stages": "of each stage: the log of its updates, checkpoints",
    "model": "the trained model or adapter with its tokenizer",
    "plots": "the plots of this page, one SVG each",
    "mlflow.json": "where the run is tracked",
}


@dataclass(frozen=True)
class MatrixPlot:
    """A matrix with its heat map."""

    matrix: Any
    plot: Plot


@dataclass(frozen=True)
class VariantSweep:
    """Variants of a stage by gain and forgetting. plot: None where fewer than two of them stand at a number."""

    stage: str
    mitigation: str
    gain_score: str
    forgetting_score: str
    points: Sequence[ArmPoint]
    plot: Plot | None


def build_run_page(run: RunFiles) -> tuple[str, list[Plot]]:
    """The page and its plots."""
    heats = list(_matrix_plots(run))
    during = list(stage_curves.build_mid_stage_plots(run))
    training = list(_training_plots(run))
    of_data = list(_data_plots(run))
    sweeps = list(_variant_sweeps(run))
    text = page.render_template(
        "run.html.jinja",
        run=run,
        verdict=build_run_headline(run.changes, run.matrices, run.gate),
        facts=_header_items(run),
        suites=[(name, list(group)) for name, group in groupby(run.changes, key=lambda one: one.suite)],
        endings=_format_incomplete_answers,
        needed=any(one.needed for one in run.changes),
        heats=heats,
        words=SUMMARY_DESCRIPTIONS,
        levels=LEVEL_SUMMARIES,
        during=during,
        endings_within=stage_curves.early_stopping_sentences(run),
        training=training,
        sweeps=sweeps,
        trained={name: one for name, one in run.stage_results.items() if one},
        data_plots=of_data,
        counts=_row_counts(run.data),
        count_names=_count_names(_row_counts(run.data)),
        realised=_realized_shares(run.data, run.stages),
        share_names=("loss_tokens", "tokens", "rows"),
        efficiency=_by_stage_name(run.data.get("efficiency"), run.stages),
        warnings=[str(one) for one in run.data.get("warnings") or ()],
        examples=list(_load_examples(run)),
        spec=redact(run.spec),
        hidden=redact(run.spec) != run.spec,
        environment=redact(run.environment),
        files=[
            (name, told) for name, told in FILE_DESCRIPTIONS.items() if name == "plots" or (run.folder / name).exists()
        ],
        place=str(run.folder.absolute()),
        commands=list(_commands(run)),
    )
    return text, [*(one.plot for one in heats), *during, *training, *(one.plot for one in sweeps if one.plot), *of_data]


def _header_items(run: RunFiles) -> list[str]:
    """What stands above the headline, as far as it is known."""
    model = (run.spec.get("model") or {}).get("path")
    mitigations = run.spec.get("mitigations") or {}
    mode = next(iter(run.spec.get("mode") or {}), None) if isinstance(run.spec.get("mode"), Mapping) else None
    made = [
        run.run_info.get("id"),
        redact_text(str(model)).rpartition("/")[2].partition("#")[0] if model else None,
        mode,
    ]
    return [str(one) for one in (*made, " + ".join(mitigations) or None) if one]


def _format_incomplete_answers(run: RunFiles, suite: str) -> str:
    """How many answers after training are no whole answers; empty where all are."""
    ends = run.answers.get(suite, {}).get("after", {})
    return ", ".join(
        f"{ends[key]:,} {word}" for key, word in (("length", "cut off"), ("empty", "empty")) if ends.get(key)
    )


def _matrix_plots(run: RunFiles) -> Iterator[MatrixPlot]:
    names: list[str] = []
    for matrix in (one for one in run.matrices if one.suites):
        names.append(page.unique_slug(f"matrix-{matrix.called}", names))
        yield MatrixPlot(matrix, plot_heatmap(matrix, run.stages, names[-1]))


def _training_plots(run: RunFiles) -> Iterator[Plot]:
    """Loss, learning rate and penalties over the updates of all stages, as far as they were logged."""
    stages = [name for name in run.stages[1:] if run.step_logs.get(name)]
    logs = [run.step_logs[name] for name in stages]
    keys = list(dict.fromkeys(key for log in logs for entry in log for key in entry))
    penalties = [key for key in keys if key.startswith("penalty/")]
    plots: list[tuple[str, str, str, list[str], bool]] = [
        ("loss", "Loss of the task", "nats a trained token", ["loss"], False),
        ("learning-rate", "Learning rate", "", ["learning_rate"], True),
        ("penalties", "Penalties of the mitigations", "", penalties, True),
        ("gradient", "Gradient norm before clipping", "", ["grad_norm"], True),
    ]
    for name, title, unit, wanted, from_zero in plots:
        found = [
            Curve(
                key.removeprefix("penalty/"),
                tuple(steps_and_values(log, key) for log in logs),
                noisy=key != "learning_rate",
            )
            for key in wanted
            if key in keys
        ]
        if any(math.isfinite(one) for curve in found for _, values in curve.stages for one in values):
            yield plot_curves(found, stages, name, title, unit=unit, from_zero=from_zero)


def _variant_sweeps(run: RunFiles) -> Iterator[VariantSweep]:
    """Weights measured beside a stage's own, by the first score of a domain suite and that of a general one."""
    known = [one for one in run.changes if one.higher_is_better is not None]
    gained, lost = ([one for one in known if one.role == role] for role in ("domain", "general"))
    if not gained or not lost:
        return
    gain = f"{gained[0].suite}/{gained[0].name}"
    other = next((one for one in lost if one.name == gained[0].name), lost[0])
    loss = f"{other.suite}/{other.name}"
    names: list[str] = []
    for (stage, mitigation), group in groupby(run.variants, key=lambda one: (one.stage, one.mitigation)):
        found = [
            (one.parameter_value, point)
            for one in group
            if (point := variant_point(one, one.name, gain, loss)) is not None
        ]
        placed = sorted((one for one in found if math.isfinite(one[0])), key=lambda one: one[0])
        plot = None
        if len({at for at, _ in placed}) > 1:
            names.append(page.unique_slug(f"variants-{stage}-{mitigation}", names))
            key = placed[0][1].arm.rpartition("=")[0]
            plot = plot_sweep(placed, gain, loss, f"{mitigation} {key}", names[-1])
        if found:
            yield VariantSweep(stage, mitigation, gain, loss, [point for _, point in found], plot)


def _data_plots(run: RunFiles) -> Iterator[Plot]:
    found = _realized_shares(run.data, run.stages)
    parts = {
        stage: {source: float(units["loss_tokens"]) for source, units in sources.items() if "loss_tokens" in units}
        for stage, sources in found.items()
    }
    if any(len(one) > 1 for one in parts.values()):
        yield plot_source_shares(parts, "shares", "Realised shares of the loss tokens")
    names = ["shares"]
    for source, given in (run.data.get("lengths") or {}).items():
        bins = parse_length_bins(given)
        if bins:
            names.append(page.unique_slug(f"lengths-{source}", names))
            yield plot_length_histogram(bins, names[-1], f"Length of the rows of {source}")


def parse_length_bins(histogram: Any) -> list[LengthBin]:
    """The bins of a length histogram, given as `bins` of `low`, `high`, `rows` or as `edges` and `counts`.

    edges: the lower bound of each bin and the upper of the last, in tokens. Anything else has no bins.
    """
    if not isinstance(histogram, Mapping):
        return []
    limit = histogram.get("max_length")
    most = math.inf if limit is None else float(limit)
    try:
        if "bins" in histogram:
            found = [(int(one["low"]), int(one["high"]), int(one["rows"])) for one in histogram["bins"]]
        else:
            edges, counts = [*map(float, histogram["edges"])], [*map(int, histogram["counts"])]
            pairs = zip(edges, edges[1:], counts, strict=False)
            found = [(math.ceil(low), max(math.ceil(high) - 1, math.ceil(low)), rows) for low, high, rows in pairs]
    except (KeyError, TypeError, ValueError):
        return []
    return [LengthBin(low, high, rows, low > most) for low, high, rows in found]


def _realized_shares(data: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Stage -> source -> unit -> share, of the stages whose shares are known."""
    return {name: one for name, one in _by_stage_name(data.get("shares"), stages).items() if isinstance(one, Mapping)}


def _by_stage_name(values: Any, stages: Sequence[str]) -> dict[str, Any]:
    """What a list says of each trained stage, by its name."""
    own = stages[max(1, len(stages) - len(values)) :] if isinstance(values, list) else ()  # after those of earlier runs
    return dict(zip(own, values, strict=False)) if isinstance(values, list) else {}


def _row_counts(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Source -> what was counted of its rows."""
    given = data.get("counts")
    found = given.items() if isinstance(given, Mapping) else ()
    return {
        str(source): {str(key): one for key, one in counted.items() if isinstance(one, int | float)}
        for source, counted in found
        if isinstance(counted, Mapping)
    }


def _count_names(counts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for one in counts.values() for name in one))


def _load_examples(run: RunFiles) -> Iterator[tuple[str, list[ExampleAnswers]]]:
    """(suite, answers before and after): those of the report, and of every other suite as many, drawn by the seed."""
    given = {name: list(group) for name, group in groupby(run.examples, key=lambda one: one.suite)}
    last = len(run.stages) - 1
    for suite in dict.fromkeys([*given, *(one.suite for one in run.changes)]):
        if suite in given:
            yield suite, given[suite]
            continue
        before, after = (
            load_items_by_id(run.folder / "predictions" / f"{suite}-stage{stage}.jsonl") for stage in (0, last)
        )
        both = [one for one in before if all(side.get(one, {}).get("answer") is not None for side in (before, after))]
        if both:
            chosen = create_generator(run.seed, "report", "examples", suite).sample(
                range(len(both)), min(NUM_EXAMPLES, len(both))
            )
            yield suite, [_example_answers(suite, both[index], before, after) for index in sorted(chosen)]


def _example_answers(suite: str, item_id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> ExampleAnswers:
    told, answer = before[item_id], after[item_id]["answer"]
    return ExampleAnswers(
        suite, item_id, str(told.get("prompt", "")), str(told.get("reference", "")), str(told["answer"]), str(answer)
    )


def _commands(run: RunFiles) -> Iterator[tuple[str, str]]:
    uri = run.run_info.get("uri")
    if "id" in run.run_info:
        yield "compare it with another run", f"harness compare {shlex.quote(str(run.run_info['id']))} RUN"
    if uri and not str(uri).startswith(("http://", "https://")):
        yield "look at it in MLflow", f"mlflow ui --backend-store-uri {shlex.quote(redact_text(str(uri)))}"
