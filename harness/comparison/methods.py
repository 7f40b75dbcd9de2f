"""Compare methods over seeds: runs that differ in nothing but their seed are one method.

The statistics are those of an experiment's arms: means over seeds, paired by seed and item, with intervals over both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.comparison.run_summary import LoadedRun
from harness.errors import HarnessError
from harness.registry import Registry
from harness.report.arm_comparison import comparison_notes
from harness.report.arm_experiment import ArmExperiment
from harness.report.arm_score import ArmScore, count_hypotheses
from harness.report.finished_run import FinishedRun
from harness.report.spec_diff import spec_differences
from harness.spec.metric_factory import create_metrics_of_specs
from harness.utils.json_files import json_safe

COMPARISON_SEED = 0
IGNORED_KEYS = ("seed", "name", "output", "track", "arms")
"""Keys of the spec in which the runs of one method may differ."""
MAX_SETTINGS_CHARS = 40
"""Length up to which the name of a method has the settings in which it differs from others of the same name."""
_SEED_SUFFIX = re.compile(r",seed=\d+$")


@dataclass(frozen=True)
class MethodComparison:
    """Methods that were run with several seeds.

    Attributes:
        baseline: The method with which the others are compared.
        methods: Method -> its seeds, the baseline first.
        scores: Every score of every method that can be compared.
        primary: Suite -> its primary score in the baseline, as `suite/score`.
        notes: What is not compared, with the reasons.
    """

    baseline: str
    methods: Mapping[str, tuple[int, ...]]
    scores: tuple[ArmScore, ...]
    primary: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def num_comparisons(self) -> int:
        """The number of comparisons for which p-values are adjusted; a perplexity and its NLL are one."""
        return count_hypotheses(self.scores)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data for JSON."""
        document: dict[str, Any] = json_safe(asdict(self))
        return document


def group_runs_by_method(runs: Sequence[LoadedRun]) -> dict[str, list[LoadedRun]]:
    """Return method -> its runs, in the order of the runs.

    A run that is not finished is a method of its own, and so is each of several runs with the same settings that all
    have the same seed.
    """
    groups: dict[str, list[LoadedRun]] = {}
    for number, run in enumerate(runs):
        finished = run.finished_run
        spec = {} if finished is None else {key: finished.spec[key] for key in finished.spec if key not in IGNORED_KEYS}
        key = json.dumps(spec, sort_keys=True, default=str) if run.is_finished and spec else f"unfinished {number}"
        groups.setdefault(key, []).append(run)
    parts = [part for each in groups.values() for part in _split_equal_runs(each)]
    return dict(zip(_unique_method_names(parts), parts, strict=True))


def has_seeds(methods: Mapping[str, Sequence[LoadedRun]]) -> bool:
    """Return whether there are several methods, one of them with several runs."""
    return len(methods) > 1 and any(len(runs) > 1 for runs in methods.values())


def compare_methods(methods: Mapping[str, Sequence[LoadedRun]], baseline: str, registry: Registry) -> MethodComparison:
    """Compare every score of every method with the baseline's.

    Args:
        methods: See `group_runs_by_method`.
        baseline: One of the methods.
        registry: The plugins, for the metrics.

    Raises:
        HarnessError: The baseline is not finished.
    """
    ordered = {baseline: methods[baseline], **methods}
    notes = []
    runs: dict[str, dict[int, FinishedRun]] = {}
    for method, loaded_runs in ordered.items():
        for run in loaded_runs:
            if run.finished_run is None or not run.is_finished:
                notes.append(f"{run.summary.name} is not compared: {run.summary.why or 'the run is not finished'}")
                continue
            by_seed, seed = runs.setdefault(method, {}), int(run.finished_run.spec.get("seed", 0))
            if seed in by_seed:
                earlier = by_seed[seed].name
                notes.append(f"{run.summary.name} is not compared: {earlier} has the same settings and seed, {seed}")
                continue
            by_seed[seed] = run.finished_run
    if baseline not in runs:
        raise HarnessError("compare", f"the baseline {baseline} has no scores", "name a finished run with --baseline")
    specs = [run.spec for by_seed in runs.values() for run in by_seed.values()]
    experiment = ArmExperiment(runs, baseline, create_metrics_of_specs(registry, specs), COMPARISON_SEED)
    return MethodComparison(
        baseline=baseline,
        methods={method: tuple(by_seed) for method, by_seed in runs.items()},
        scores=experiment.compare_all_scores(),
        primary=experiment.primary_scores,
        notes=(*notes, *comparison_notes(experiment)),
    )


def _split_equal_runs(group: list[LoadedRun]) -> list[list[LoadedRun]]:
    """Return single runs if all have one seed: they are then not replicates."""
    seeds = {run.finished_run.spec.get("seed", 0) for run in group if run.finished_run is not None}
    return [group] if len(seeds) > 1 else [[run] for run in group]


def _method_name(group: Sequence[LoadedRun]) -> str:
    """Return the name of the arm, or of the spec if its runs share one."""
    name = group[0].summary.name
    if _SEED_SUFFIX.search(name) or len(group) == 1:
        return _SEED_SUFFIX.sub("", name)
    names = {run.finished_run.spec.get("name", name) for run in group if run.finished_run is not None}
    return str(next(iter(names))) if len(names) == 1 else name


def _unique_method_names(groups: Sequence[Sequence[LoadedRun]]) -> list[str]:
    """Return a name for each method. Methods with the same name get the settings in which they differ, or a number."""
    names = [_method_name(group) for group in groups]
    for name in [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        indices = [index for index, each in enumerate(names) if each == name]
        runs = {str(index): groups[index][0] for index in indices}
        specs = {key: run.finished_run.spec if run.finished_run else {} for key, run in runs.items()}
        differences = {key: values for key, values in spec_differences(specs).items() if key not in IGNORED_KEYS}
        for number, index in enumerate(indices, start=1):
            settings = [
                f"{key.rpartition('.')[2]}={values[str(index)]}"
                for key, values in differences.items()
                if str(index) in values and isinstance(values[str(index)], str | int | float)
            ]
            text = ", ".join(settings)
            names[index] = f"{name} ({text if text and len(text) <= MAX_SETTINGS_CHARS else number})"
    for index, name in enumerate(names):
        number = 2
        while names[index] in names[:index]:
            names[index], number = f"{name} {number}", number + 1
    return names
