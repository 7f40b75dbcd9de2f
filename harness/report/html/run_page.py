"""The page of one run: its sections and the plots in them. The layout is in `templates/run.html.jinja`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from harness.interfaces.report_section import ReportSection
from harness.report.arm_comparison import variant_point
from harness.report.display_text import SUMMARY_DESCRIPTIONS, describe_flips, format_incomplete_answers
from harness.report.html import page, stage_curves
from harness.report.html.item_browser import build_item_browser
from harness.report.html.plots.bars import LengthBin, plot_length_histogram, plot_source_shares
from harness.report.html.plots.curves import Curve, has_finite_value, plot_curves, steps_and_values
from harness.report.html.plots.heatmap import plot_heatmap
from harness.report.html.plots.svg_canvas import Plot
from harness.report.html.plots.sweep import SweepAxis, plot_sweep
from harness.report.html.run_files import RunFiles, load_items_by_id
from harness.report.rating_sections import rating_sections
from harness.report.recommendation import ArmPoint
from harness.report.run_report import NUM_EXAMPLES, ExampleAnswers
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.report.verdict import build_verdict
from harness.seeding import create_generator
from harness.utils.formatting import format_number, format_phases
from harness.utils.phase_clock import phases_of_run_info
from harness.utils.redaction import redact, redact_text
from harness.utils.shell_commands import harness_command
from harness.utils.stage_memory import format_memory

LEVEL_SUMMARIES = ("average_accuracy", "learning_accuracy")
"""The summaries that are not differences."""

SHARE_UNITS = ("loss_tokens", "tokens", "rows")

FILE_DESCRIPTIONS = {
    "report.json": "this report as data",
    "scores.json": "every score with the statistics of its items",
    "spec.json": "the complete spec, with all defaults",
    "environment.json": "versions, device, git state, digests",
    "data.json": "the training data: counts, shares, digests",
    "variants.json": "scores of weight variants that a mitigation offered",
    "predictions": "every item of every suite, before and after training, as JSON lines",
    "stages": "for each stage: training log and checkpoints",
    "model": "the trained model or adapter with its tokenizer",
    "plots": "the plots of this page, one SVG each",
    "tuned.json": "the model that was tuned elsewhere",
    "mlflow.json": "where the run is tracked",
}


@dataclass(frozen=True)
class MatrixPlot:
    """A matrix with its heat map."""

    matrix: StageSuiteMatrix
    plot: Plot


@dataclass(frozen=True)
class VariantSweep:
    """The weight variants of a stage, by gain and forgetting.

    Attributes:
        plot: None if fewer than two variants have a parameter value.
    """

    stage: str
    mitigation: str
    gain_score: str
    forgetting_score: str
    points: Sequence[ArmPoint]
    plot: Plot | None


def build_run_page(run: RunFiles, sections: Sequence[ReportSection] = ()) -> tuple[str, list[Plot]]:
    """Build the page of a run and its plots.

    Args:
        run: The files of the run.
        sections: The sections of plugins; those of ratings come before them.
    """
    matrix_plots = list(_matrix_plots(run)) if len(run.stages) > 2 else []
    mid_stage_plots = list(stage_curves.build_mid_stage_plots(run))
    training_plots = list(_training_plots(run))
    data_plots = list(_data_plots(run))
    sweeps = list(_variant_sweeps(run))
    counts = _row_counts(run.data)
    spec = redact(run.spec)
    sections = (*rating_sections(run.folder), *sections)
    text = page.render_template(
        "run.html.jinja",
        run=run,
        verdict=build_verdict(run.changes, run.gate, run.leaked_words),
        header_items=_header_items(run),
        suites=[(name, list(group)) for name, group in groupby(run.changes, key=lambda change: change.suite)],
        incomplete_answers={
            suite: format_incomplete_answers(endings.get("after", {})) for suite, endings in run.answers.items()
        },
        changed_items=[(flips, describe_flips(flips)) for flips in run.flips if flips.worse or flips.better],
        diagnostics=list(_diagnostics(run)),
        has_needed_items=any(change.needed for change in run.changes),
        matrix_plots=matrix_plots,
        summary_descriptions=SUMMARY_DESCRIPTIONS,
        level_summaries=LEVEL_SUMMARIES,
        mid_stage_plots=mid_stage_plots,
        early_stopping=stage_curves.early_stopping_sentences(run),
        training_plots=training_plots,
        phases=format_phases(phases_of_run_info(run.run_info)),
        memory=format_memory(run.run_info),
        stage_results={name: result for name, result in run.stage_results.items() if result},
        sweeps=sweeps,
        data_plots=data_plots,
        counts=counts,
        count_names=list(dict.fromkeys(name for counts_of_source in counts.values() for name in counts_of_source)),
        realized_shares=_realized_shares(run.data, run.stages),
        share_units=SHARE_UNITS,
        efficiency=_by_stage_name(run.data.get("efficiency"), run.stages),
        cached_evaluations=[str(suite) for suite in run.data.get("cached_evaluations") or ()],
        warnings=[str(warning) for warning in run.data.get("warnings") or ()],
        examples=list(_load_examples(run)),
        browser=build_item_browser(run),
        plugin_contents=[(f"plugin-{number}", section.title, True) for number, section in enumerate(sections, 1)],
        plugin_sections=[(f"plugin-{number}", section) for number, section in enumerate(sections, 1)],
        spec=spec,
        has_secrets=spec != run.spec,
        environment=redact(run.environment),
        files=[
            (name, description)
            for name, description in FILE_DESCRIPTIONS.items()
            if name == "plots" or (run.folder / name).exists()
        ],
        folder=str(run.folder.absolute()),
        commands=list(_commands(run)),
    )
    sweep_plots = [sweep.plot for sweep in sweeps if sweep.plot]
    plots = [*(each.plot for each in matrix_plots), *mid_stage_plots, *training_plots, *sweep_plots, *data_plots]
    return text, plots


def _diagnostics(run: RunFiles) -> Iterator[str]:
    """Yield one line for each metric of a suite that says how far its scores can be trusted."""
    by_metric = {(change.suite, change.metric): change.diagnostics for change in run.changes if change.diagnostics}
    for (suite, metric), numbers in by_metric.items():
        values = ", ".join(f"{name.replace('_', ' ')} {format_number(value)}" for name, value in numbers.items())
        yield f"{metric} of {suite}: {values}"


def _header_items(run: RunFiles) -> list[str]:
    """Return what is known of run id, model, mode and mitigations."""
    model = (run.spec.get("model") or {}).get("path")
    mode = run.spec.get("mode")
    items = [
        run.run_info.get("id"),
        redact_text(str(model)).rpartition("/")[2].partition("#")[0] if model else None,
        next(iter(mode), None) if isinstance(mode, Mapping) else None,
        " + ".join(run.spec.get("mitigations") or {}),
    ]
    return [str(item) for item in items if item]


def _matrix_plots(run: RunFiles) -> Iterator[MatrixPlot]:
    names: list[str] = []
    for matrix in run.matrices:
        if matrix.suites:
            names.append(page.unique_slug(f"matrix-{matrix.called}", names))
            yield MatrixPlot(matrix, plot_heatmap(matrix, run.stages, names[-1]))


def _training_plots(run: RunFiles) -> Iterator[Plot]:
    """Plot loss, learning rate, penalties and gradient norm over the steps of all stages, if they were logged."""
    stages = [name for name in run.stages[1:] if run.step_logs.get(name)]
    logs = [run.step_logs[name] for name in stages]
    keys = list(dict.fromkeys(key for log in logs for entry in log for key in entry))
    penalties = [key for key in keys if key.startswith("penalty/")]
    plots: list[tuple[str, str, str, list[str], bool]] = [
        ("loss", "Task loss", "nats per trained token", ["loss"], False),
        ("learning-rate", "Learning rate", "", ["learning_rate"], True),
        ("penalties", "Penalties of the mitigations", "", penalties, True),
        ("gradient", "Gradient norm before clipping", "", ["grad_norm"], True),
    ]
    for name, title, unit, plotted_keys, from_zero in plots:
        curves = [
            Curve(
                key.removeprefix("penalty/"),
                tuple(steps_and_values(log, key) for log in logs),
                noisy=key != "learning_rate",
                from_zero=from_zero,
            )
            for key in plotted_keys
            if key in keys
        ]
        if has_finite_value(curves):
            yield plot_curves(curves, stages, name, title, unit=unit)


def _variant_sweeps(run: RunFiles) -> Iterator[VariantSweep]:
    """Yield the weight variants of each stage, by the first domain score and the matching general score."""
    directed = [change for change in run.changes if change.higher_is_better is not None]
    domain, general = ([change for change in directed if change.role == role] for role in ("domain", "general"))
    if not domain or not general:
        return
    gain = f"{domain[0].suite}/{domain[0].name}"
    same_score = next((change for change in general if change.name == domain[0].name), general[0])
    forgetting = f"{same_score.suite}/{same_score.name}"
    names: list[str] = []
    for (stage, mitigation), group in groupby(run.variants, key=lambda variant: (variant.stage, variant.mitigation)):
        points = [
            (variant.parameter_value, point)
            for variant in group
            if (point := variant_point(variant, variant.name, gain, forgetting)) is not None
        ]
        if not points:
            continue
        swept = sorted((entry for entry in points if math.isfinite(entry[0])), key=lambda entry: entry[0])
        plot = None
        if len({value for value, _ in swept}) > 1:
            names.append(page.unique_slug(f"variants-{stage}-{mitigation}", names))
            parameter = swept[0][1].arm.rpartition("=")[0]
            plot = plot_sweep(swept, gain, forgetting, SweepAxis(f"{mitigation} {parameter}"), names[-1])
        yield VariantSweep(stage, mitigation, gain, forgetting, [point for _, point in points], plot)


def _data_plots(run: RunFiles) -> Iterator[Plot]:
    loss_token_shares = {
        stage: {source: float(units["loss_tokens"]) for source, units in sources.items() if "loss_tokens" in units}
        for stage, sources in _realized_shares(run.data, run.stages).items()
    }
    if any(len(shares) > 1 for shares in loss_token_shares.values()):
        yield plot_source_shares(loss_token_shares, "shares", "Realized shares of the loss tokens")
    names = ["shares"]
    for source, histogram in (run.data.get("lengths") or {}).items():
        bins = parse_length_bins(histogram)
        if bins:
            names.append(page.unique_slug(f"lengths-{source}", names))
            yield plot_length_histogram(bins, names[-1], f"Length of the rows of {source}")


def parse_length_bins(histogram: Any) -> list[LengthBin]:
    """Parse the bins of a length histogram; any other value has no bins.

    Args:
        histogram: `bins` of `low`, `high` and `rows`, or `edges` and `counts`; lengths in tokens. `edges` are the
            lower bound of each bin and the upper bound of the last one.
    """
    if not isinstance(histogram, Mapping):
        return []
    limit = histogram.get("max_length")
    max_length = math.inf if limit is None else float(limit)
    try:
        if "bins" in histogram:
            bins = [(int(bin_["low"]), int(bin_["high"]), int(bin_["rows"])) for bin_ in histogram["bins"]]
        else:
            edges, counts = [*map(float, histogram["edges"])], [*map(int, histogram["counts"])]
            pairs = zip(edges, edges[1:], counts, strict=False)
            bins = [(math.ceil(low), max(math.ceil(high) - 1, math.ceil(low)), rows) for low, high, rows in pairs]
    except (KeyError, TypeError, ValueError):
        return []
    return [LengthBin(low, high, rows, low > max_length) for low, high, rows in bins]


def _realized_shares(data: Mapping[str, Any], stages: Sequence[str]) -> dict[str, Mapping[str, Mapping[str, float]]]:
    """Return stage -> source -> unit -> share, for the stages whose shares are known."""
    by_stage = _by_stage_name(data.get("shares"), stages)
    return {name: shares for name, shares in by_stage.items() if isinstance(shares, Mapping)}


def _by_stage_name(values: Any, stages: Sequence[str]) -> dict[str, Any]:
    """Return stage -> its entry in a list with one entry for each stage that this run trained."""
    if not isinstance(values, list):
        return {}
    trained_stages = stages[max(1, len(stages) - len(values)) :]  # the stages of earlier runs come first
    return dict(zip(trained_stages, values, strict=False))


def _row_counts(data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return source -> name of a count -> number of rows."""
    counts = data.get("counts")
    if not isinstance(counts, Mapping):
        return {}
    return {
        str(source): {str(name): count for name, count in of_source.items() if isinstance(count, int | float)}
        for source, of_source in counts.items()
        if isinstance(of_source, Mapping)
    }


def _load_examples(run: RunFiles) -> Iterator[tuple[str, list[ExampleAnswers]]]:
    """Yield (suite, examples): those of the report, and for every other suite as many, sampled with the seed."""
    of_report = {name: list(group) for name, group in groupby(run.examples, key=lambda example: example.suite)}
    last_stage = len(run.own_stages)
    for suite in dict.fromkeys([*of_report, *(change.suite for change in run.changes)]):
        if suite in of_report:
            yield suite, of_report[suite]
            continue
        before, after = (
            load_items_by_id(run.folder / "predictions" / f"{suite}-stage{stage}.jsonl") for stage in (0, last_stage)
        )
        ids = [
            item_id
            for item_id in before
            if all(items.get(item_id, {}).get("answer") is not None for items in (before, after))
        ]
        if ids:
            generator = create_generator(run.seed, "report", "examples", suite)
            indices = generator.sample(range(len(ids)), min(NUM_EXAMPLES, len(ids)))
            yield suite, [_example_answers(suite, ids[index], before, after) for index in sorted(indices)]


def _example_answers(suite: str, item_id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> ExampleAnswers:
    item = before[item_id]
    return ExampleAnswers(
        suite=suite,
        id=item_id,
        prompt=str(item.get("prompt", "")),
        reference=str(item.get("reference", "")),
        before=str(item["answer"]),
        after=str(after[item_id]["answer"]),
        before_cut=item.get("finish") == "length",
        after_cut=after[item_id].get("finish") == "length",
    )


def _commands(run: RunFiles) -> Iterator[tuple[str, str]]:
    """Yield (label, command) of the commands that a user can run next."""
    uri = run.run_info.get("uri")
    if "id" in run.run_info:
        yield "compare with another run", f"{harness_command('compare', str(run.run_info['id']))} RUN"
    if uri and not str(uri).startswith(("http://", "https://")):
        yield "open in MLflow", f"mlflow ui --backend-store-uri {shlex.quote(redact_text(str(uri)))}"
