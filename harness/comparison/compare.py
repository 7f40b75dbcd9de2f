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
from harness.comparison.paired_scores import NotComparable, PairedScore, PairwiseComparer
from harness.comparison.run_summary import FinalScore, LoadedRun, RunSummary, is_run_folder, load_run_from_folder
from harness.errors import HarnessError
from harness.report.finished_run import load_run_json
from harness.tracking import mlflow_store
from harness.utils import redaction
from harness.utils.json_files import json_safe

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
        differences: Spec key -> its value in each run, None where a run does not have it.
        baseline: Index of the run that the others are compared with.
        pairs: Every score that another run shares with the baseline.
        not_comparable: What could not be compared.
        score: The score whose `items` are shown, as `suite/score`.
        items: The items that changed most.
        notes: What is missing.
        score_requested: Whether the user chose `score`.
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
    items: int = NUM_CHANGED_ITEMS,
    registry: Registry | None = None,
) -> Comparison:
    """Load runs and compare each with the baseline, over the items that both were evaluated on.

    Args:
        runs: Run folders, MLflow run ids or run names, in the order in which they are shown. A folder or a run that
            holds the arms of an experiment means all its arms.
        experiment: MLflow experiment in which `runs` are looked up; without `runs`, all its runs, oldest first.
        uri: Tracking store; None: $MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`. Run folders do not need it.
        baseline: The baseline, named like a run; None: the first run.
        score: Score whose most changed items are listed, as `suite/score`; None: the first of the first domain suite.
        items: Number of changed items for each run.
        registry: The plugins; None: the installed ones.

    Raises:
        HarnessError: If the store cannot be read, or a run, an experiment or the score does not exist.
    """
    if not runs and experiment is None:
        raise HarnessError("compare", "no run is given", "give run ids, names or folders, or --experiment NAME")
    with tempfile.TemporaryDirectory(prefix="harness-compare-") as folder:
        finder = _RunFinder(mlflow_store.tracking_uri(uri), Path(folder), experiment)
        loaded_runs = [run for name in runs for run in finder.find_by_name(name)] if runs else finder.find_all()
        baseline_runs = finder.find_by_name(baseline) if baseline is not None else loaded_runs[:1]
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
        )
        if len(unique) > 1:
            return _with_pairs(comparison, list(unique.values()), score, items, registry)
        if score is not None:
            raise HarnessError("--score", "a single run is not compared", "add another run, or remove --score")
        return comparison


def _run_key(loaded_run: LoadedRun) -> str:
    return loaded_run.summary.run_id or str(Path(loaded_run.summary.folder).resolve())


def _spec_differences(runs: Sequence[RunSummary]) -> dict[str, tuple[str | None, ...]]:
    """Return spec key -> its value in each run, for the keys whose values differ."""
    keys = sorted({key for run in runs for key in run.parameters})
    values_by_key = {key: tuple(run.parameters.get(key) for run in runs) for key in keys}
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
    selected = select_score(pairs, score)
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
        """Load the run, or all arms of the experiment, with this folder, id or name."""
        folder = Path(name)
        if is_run_folder(folder) and self._experiment is None:
            return [load_run_from_folder(folder)]
        arms = sorted(file.parent for file in folder.glob("arms/*/scores.json") if is_run_folder(file.parent))
        if arms:
            spec = load_run_json(folder, "spec.json") if (folder / "spec.json").is_file() else {}
            if (spec.get("arms") or {}).get("seeds") is not None and len(arms) > 1:
                what = "its runs differ in their seed, and compare has one baseline for all"
                hint = f"the arms are compared by: harness report {folder}; or name single runs below {folder / 'arms'}"
                raise HarnessError(str(folder), what, hint)
            return [load_run_from_folder(arm) for arm in arms]
        return self._load_from_store(lambda store: store.find_runs(name))

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
