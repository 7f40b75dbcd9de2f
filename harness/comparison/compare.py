"""Compare finished runs: their scores, whether these differ beyond chance, and how the specs differ.

Reads run folders and MLflow tracking stores, without any model library. Every run is compared with the baseline (the
first run unless another is named), item by item.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.comparison.changed_items import ChangedItem, most_changed_items, select_score
from harness.comparison.methods import (
    IGNORED_KEYS,
    MethodComparison,
    compare_methods,
    group_runs_by_method,
    has_seeds,
)
from harness.comparison.paired_scores import NotComparable, PairedScore, PairwiseComparer
from harness.comparison.run_summary import FinalScore, LoadedRun, RunSummary, is_run_folder, load_run_from_folder
from harness.errors import HarnessError
from harness.interfaces.report_section import ReportSection
from harness.report.finished_run import load_run_json
from harness.report.rating_sections import comparison_sections
from harness.tracking import mlflow_store
from harness.utils import redaction
from harness.utils.find_run import AmbiguousRun, find_run_anywhere
from harness.utils.json_files import json_safe
from harness.utils.shell_commands import harness_command

if TYPE_CHECKING:
    from mlflow.entities import Run

    from harness.comparison.mlflow_runs import MlflowRunStore
    from harness.registry import Registry

__all__ = ["ChangedItem", "Comparison", "FinalScore", "NotComparable", "PairedScore", "RunSummary", "compare_runs"]

NUM_CHANGED_ITEMS = 10


@dataclass(frozen=True)
class Comparison:
    """The result of comparing runs.

    Attributes:
        uri: Tracking store that was read; empty if none was.
        runs: The runs, in the order in which they are shown.
        differences: Spec key, or `plugin <name>`, -> its value in each run, None where a run does not have it.
        baseline: Index of the run that the others are compared with.
        pairs: Every score that another run shares with the baseline.
        not_comparable: What could not be compared.
        score: The score whose `items` are shown, as `suite/score`.
        items: The items that changed most.
        notes: What is missing.
        score_requested: Whether the user chose `score`.
        primary: Suite -> its primary score in the baseline, as `suite/score`.
        methods: The comparison over seeds, if runs differ in nothing but their seed; `pairs` is then empty.
        ratings: What people rated of the runs whose folders are on this machine.
    """

    uri: str
    runs: tuple[RunSummary, ...]
    differences: Mapping[str, tuple[str | None, ...]]
    baseline: int = 0
    pairs: tuple[PairedScore, ...] = ()
    not_comparable: tuple[NotComparable, ...] = ()
    score: str | None = None
    items: tuple[ChangedItem, ...] = ()
    notes: tuple[str, ...] = ()
    score_requested: bool = field(default=False, repr=False)
    primary: Mapping[str, str] = field(default_factory=dict)
    methods: MethodComparison | None = None
    ratings: tuple[ReportSection, ...] = ()

    def pairs_by_score(self) -> list[PairedScore]:
        """Return the pairs grouped by score, in the order of the scores."""
        scores = list(dict.fromkeys((pair.suite, pair.score) for pair in self.pairs))
        return sorted(self.pairs, key=lambda pair: (scores.index((pair.suite, pair.score)), pair.run))

    def not_compared(self) -> list[tuple[int, str, str]]:
        """Return (index of a run, what of it was not compared, reason).

        What was not compared is empty for the complete run, else `suite` or `suite/score, score`.
        """
        scores: dict[tuple[int, str, str], list[str]] = {}
        for entry in self.not_comparable:
            scores.setdefault((entry.run, entry.suite, entry.why), []).append(entry.score)
        return [
            (run, "/".join(part for part in (suite, ", ".join(filter(None, names))) if part), reason)
            for (run, suite, reason), names in scores.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data for JSON; numbers that are not finite become None."""
        document: dict[str, Any] = json_safe(
            {
                "uri": self.uri,
                "runs": [asdict(run) for run in self.runs],
                "baseline": self.baseline,
                "pairs": [asdict(pair) for pair in self.pairs],
                "refused": [asdict(entry) for entry in self.not_comparable],
                "differences": {key: list(values) for key, values in self.differences.items()},
                "score": self.score,
                "items": [asdict(item) for item in self.items],
                "notes": list(self.notes),
                "methods": None if self.methods is None else self.methods.to_json(),
                "ratings": [asdict(section) for section in self.ratings],
            }
        )
        return document


def compare_runs(
    runs: Sequence[str],
    experiment: str | None = None,
    uri: str | None = None,
    *,
    baseline: str | None = None,
    score: str | None = None,
    items: int | None = None,
    registry: Registry | None = None,
) -> Comparison:
    """Load runs and compare each with the baseline, over the items that both were evaluated on.

    Runs that differ in nothing but their seed are one method. Methods are compared over their seeds.

    Args:
        runs: Run folders, MLflow run ids, or run names or their beginnings, in the order in which they are shown. A
            folder or a run that holds the arms of an experiment means all its arms, and `EXPERIMENT/ARM` one of them.
        experiment: MLflow experiment in which `runs` are looked up; without `runs`, all its runs, oldest first.
        uri: Tracking store; None: $MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`. Run folders do not need it.
        baseline: The baseline, named like a run; None: the first run.
        score: Score whose most changed items are listed, as `suite/score`; None: the primary score of the first domain
            suite.
        items: Number of changed items for each run; None: 10. Methods are compared without items.
        registry: The plugins; None: the installed ones.

    Raises:
        HarnessError: If the store cannot be read, a run, an experiment or the score does not exist, or `items` are
            requested of methods.
    """
    if not runs and experiment is None:
        raise HarnessError("compare", "no run is given", "give run ids, names or folders, or --experiment NAME")
    with tempfile.TemporaryDirectory(prefix="harness-compare-") as folder:
        finder = _RunFinder(mlflow_store.tracking_uri(uri), Path(folder), experiment)
        loaded_runs = [run for name in runs for run in finder.find_by_name(name)] if runs else finder.find_all()
        baseline_runs = _find_baseline(finder, loaded_runs, baseline)
        if len(baseline_runs) != 1:
            raise HarnessError("--baseline", f"{baseline!r} matches {len(baseline_runs)} runs", "name one of them")
        unique = {_run_key(run): run for run in loaded_runs}
        baseline_key = _run_key(baseline_runs[0])
        if baseline_key not in unique:
            unique = {baseline_key: baseline_runs[0], **unique}
        summaries = tuple(run.summary for run in unique.values())
        comparison = Comparison(
            uri=finder.store_uri,
            runs=summaries,
            differences=_spec_differences(summaries),
            baseline=list(unique).index(baseline_key),
            score_requested=score is not None,
            ratings=_find_ratings(summaries, summaries[list(unique).index(baseline_key)].name),
        )
        methods = group_runs_by_method(list(unique.values()))
        if has_seeds(methods):
            if items:
                raise _no_items_error(methods, unique[baseline_key], items)
            return _with_methods(comparison, methods, unique[baseline_key], score, registry)
        if len(unique) > 1:
            count = NUM_CHANGED_ITEMS if items is None else items
            return _with_pairs(comparison, list(unique.values()), score, count, registry)
        if score is not None:
            raise HarnessError("--score", "a single run is not compared", "add another run, or remove --score")
        return comparison


def _find_ratings(runs: Sequence[RunSummary], baseline: str) -> tuple[ReportSection, ...]:
    """Return what people rated of the runs whose folders are on this machine."""
    return comparison_sections({run.name: Path(run.folder) for run in runs if run.files == "folder"}, baseline)


def _find_baseline(finder: _RunFinder, loaded_runs: Sequence[LoadedRun], baseline: str | None) -> list[LoadedRun]:
    if baseline is None:
        return list(loaded_runs[:1])
    of_method = group_runs_by_method(loaded_runs).get(baseline, ())
    return list(of_method[:1]) or finder.find_by_name(baseline)


def _no_items_error(methods: Mapping[str, Sequence[LoadedRun]], baseline: LoadedRun, items: int) -> HarnessError:
    other = next(run for runs in methods.values() for run in runs if baseline not in runs)
    names = [run.summary.folder or run.summary.run_id for run in (baseline, other)]
    command = harness_command("compare", *names, "--items", str(items))
    return HarnessError(
        "--items", "methods are compared over their seeds, without items", f"compare two runs: {command}"
    )


def _with_methods(
    comparison: Comparison,
    methods: Mapping[str, Sequence[LoadedRun]],
    baseline: LoadedRun,
    score: str | None,
    registry: Registry | None,
) -> Comparison:
    """Compare methods over their seeds."""
    if registry is None:
        from harness.registry import discover_plugins

        registry = discover_plugins()
    baseline_method = next(name for name, runs in methods.items() if baseline in runs)
    result = compare_methods(methods, baseline_method, registry)
    known = list(dict.fromkeys(f"{each.suite}/{each.score}" for each in result.scores))
    if score is not None and score not in known:
        raise HarnessError("--score", f"no method has the score {score!r}", f"there are: {', '.join(known)}")
    ignored = {f"{key}." for key in IGNORED_KEYS}
    differences = {
        key: values for key, values in comparison.differences.items() if f"{key.partition('.')[0]}." not in ignored
    }
    return replace(comparison, methods=result, score=score, differences=differences)


def _run_key(loaded_run: LoadedRun) -> str:
    return loaded_run.summary.run_id or str(Path(loaded_run.summary.folder).resolve())


def _spec_differences(runs: Sequence[RunSummary]) -> dict[str, tuple[str | None, ...]]:
    """Return spec key -> its value in each run, for the keys whose values differ, then the versions of plugins."""
    settings = [run.parameters for run in runs]
    plugins = [{f"plugin {name}": version for name, version in run.plugins.items()} for run in runs]
    values_by_key = {
        key: tuple(values.get(key) for values in by_run)
        for by_run in (settings, plugins)
        for key in sorted({key for values in by_run for key in values})
    }
    return {key: values for key, values in values_by_key.items() if len(set(values)) > 1}


def _with_pairs(
    comparison: Comparison, loaded_runs: Sequence[LoadedRun], score: str | None, items: int, registry: Registry | None
) -> Comparison:
    """Compare the runs item by item, and find the items that changed most."""
    if registry is None:
        from harness.registry import discover_plugins

        registry = discover_plugins()
    comparer = PairwiseComparer(loaded_runs, comparison.baseline, registry)
    pairs = comparer.compare_all()
    primary = comparer.primary_scores()
    selected = select_score(pairs, score, primary)
    changed, notes = (
        most_changed_items(comparer, pairs, selected, items) if selected is not None and items else ((), ())
    )
    return replace(
        comparison,
        pairs=pairs,
        not_comparable=tuple(comparer.not_comparable),
        score=selected,
        items=changed,
        notes=notes,
        primary=primary,
    )


class _RunFinder:
    """Finds runs by the names that the user gives; opens the tracking store only when a name needs it."""

    def __init__(self, uri: str, folder: Path, experiment: str | None) -> None:
        self._uri, self._folder, self._experiment = uri, folder, experiment
        self._store: MlflowRunStore | None = None

    @property
    def store_uri(self) -> str:
        """The store that was opened, without secrets; empty if none was."""
        return "" if self._store is None else redaction.redact_text(self._uri)

    def find_all(self) -> list[LoadedRun]:
        """Load every run of the experiment."""
        return self._load_from_store(lambda store: store.list_runs())

    def find_by_name(self, name: str) -> list[LoadedRun]:
        """Load the run, or all arms of the experiment, with this folder, id, name or beginning of a name."""
        loaded = self._load_from_folder(Path(name))
        ambiguous: AmbiguousRun | None = None
        if not loaded and self._experiment is None:
            try:
                loaded = self._load_from_folder(find_run_anywhere(name))
            except AmbiguousRun as error:
                ambiguous = error
            except HarnessError:  # the tracking store may have it
                pass
        if loaded:
            return loaded
        try:
            return self._load_from_store(lambda store: store.find_runs(name))
        except HarnessError as error:
            raise ambiguous or error from error

    def _load_from_folder(self, folder: Path) -> list[LoadedRun]:
        """Load the run, or all arms of the experiment, in a folder; empty if it holds none."""
        if is_run_folder(folder) and self._experiment is None:
            return [load_run_from_folder(folder)]
        arms = sorted(file.parent for file in folder.glob("arms/*/scores.json") if is_run_folder(file.parent))
        if arms:
            arms.sort(key=_order_of_arms(folder))
        return [load_run_from_folder(arm) for arm in arms]

    def _load_from_store(self, select_runs: Callable[[MlflowRunStore], list[Run]]) -> list[LoadedRun]:
        try:
            if self._store is None:
                from harness.comparison.mlflow_runs import MlflowRunStore

                client = mlflow_store.open_store(self._uri)
                self._store = MlflowRunStore(client, redaction.redact_text(self._uri), self._folder, self._experiment)
            return [self._store.load_run(run) for run in select_runs(self._store)]
        except HarnessError:
            raise
        except Exception as error:
            hint = "run something first, name the store with --uri, or give run folders"
            what = f"cannot read the tracking store: {mlflow_store.error_summary(error)}"
            raise HarnessError(redaction.redact_text(self._uri), what, hint) from error


def _order_of_arms(folder: Path) -> Callable[[Path], tuple[bool, int]]:
    """Return a sort key for the arms of an experiment: the baseline first, then the order of the experiment."""
    document = load_run_json(folder, "arms.json") if (folder / "arms.json").is_file() else {}
    methods = list(document.get("arms") or ())
    positions = {
        Path(path).name: (method != document.get("baseline"), methods.index(method))
        for method in methods
        for path in (document["arms"][method].values() if isinstance(document["arms"][method], dict) else ())
    }
    return lambda arm: positions.get(arm.name, (True, len(methods)))
