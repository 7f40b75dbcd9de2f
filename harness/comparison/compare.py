"""Runs beside each other: what each did to its suites, whether they differ beyond chance, and in what.

Reads run folders and MLflow tracking stores; imports no model library. The first run, or the one named, is the
baseline that every other is compared with, item by item.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.comparison.changed_items import ChangedItem, most_changed_items, select_score
from harness.comparison.paired_scores import NotComparable, PairedScore, PairwiseComparer
from harness.comparison.run_summary import FinalScore, LoadedRun, RunSummary, is_run_folder, load_run_from_folder
from harness.errors import HarnessError
from harness.tracking import mlflow_store
from harness.utils import redaction
from harness.utils.json_files import json_safe

if TYPE_CHECKING:
    from harness.comparison.mlflow_runs import MlflowRunStore
    from harness.registry import Registry

__all__ = ["ChangedItem", "Comparison", "FinalScore", "NotComparable", "PairedScore", "RunSummary", "compare_runs"]

NUM_CHANGED_ITEMS = 10


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other. differences: parameter -> its value in each run, None where a run has none.

    uri: of the tracking store, empty where none was asked. baseline: index of the run that the others are compared
    with. pairs: each shared score of each other run; not_comparable: what could not be compared. score: whose `items`
    are shown, as `suite/score`. score_requested: whether the user chose it. notes: what is missing.
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
        """The pairs with those of one score together, in the order of the scores."""
        scores = list(dict.fromkeys((one.suite, one.score) for one in self.pairs))
        return sorted(self.pairs, key=lambda one: (scores.index((one.suite, one.score)), one.run))

    def not_compared(self) -> list[tuple[int, str, str]]:
        """(index of a run, what of it was not compared, why); what: "" for all, `suite`, or `suite/score, score`."""
        scores: dict[tuple[int, str, str], list[str]] = {}
        for one in self.not_comparable:
            scores.setdefault((one.run, one.suite, one.why), []).append(one.score)
        return [
            (run, "/".join(part for part in (suite, ", ".join(filter(None, names))) if part), why)
            for (run, suite, why), names in scores.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain data for JSON: what is no finite number is None."""
        made: dict[str, Any] = json_safe(
            {
                "uri": self.uri,
                "runs": [asdict(run) for run in self.runs],
                "baseline": self.baseline,
                "pairs": [asdict(one) for one in self.pairs],
                "refused": [asdict(one) for one in self.not_comparable],
                "differences": {key: list(values) for key, values in self.differences.items()},
                "score": self.score,
                "items": [asdict(one) for one in self.items],
                "notes": list(self.notes),
            }
        )
        return made


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
    """Read runs and compare each with the baseline, over the items that both were measured on.

    runs: run folders, MLflow run ids or run names, in the order in which they are shown; a folder or a run that holds
        the arms of an experiment stands for all of them. experiment: every run of this MLflow experiment, oldest
        first, or where to look for `runs`. uri: of the tracking store; None: $MLFLOW_TRACKING_URI, else
        `sqlite:///mlflow.db`. It is not asked for runs that are folders.
    baseline: named like a run; None: the first. score: whose most changed items are told, as `suite/score`; None: the
        first of the first domain suite. items: how many of them for each run. registry: None: the installed plugins.
    Raises HarnessError when the store cannot be read, or for a run, experiment or score that there is not.
    """
    where = mlflow_store.tracking_uri(uri)
    if not runs and experiment is None:
        raise HarnessError("compare", "no run is named", "give run ids, names or folders, or --experiment NAME")
    with tempfile.TemporaryDirectory(prefix="harness-compare-") as folder:
        finder = _RunFinder(where, Path(folder), experiment)
        found = [one for name in runs for one in finder.find_by_name(name)] if runs else finder.find_all()
        first = finder.find_by_name(baseline) if baseline is not None else found[:1]
        if len(first) != 1:
            raise HarnessError("--baseline", f"{baseline!r} stands for {len(first)} runs", "name one of them")
        unique = {_run_key(one): one for one in found}
        if _run_key(first[0]) not in unique:
            unique = {_run_key(first[0]): first[0], **unique}
        return _compare_loaded_runs(
            finder.store_uri,
            list(unique.values()),
            list(unique).index(_run_key(first[0])),
            score,
            items,
            registry,
        )


class _RunFinder:
    """Finds runs by what the user calls them; opens the tracking store when the first of them asks for it."""

    def __init__(self, uri: str, folder: Path, experiment: str | None) -> None:
        self._uri, self._folder, self._experiment = uri, folder, experiment
        self._store: MlflowRunStore | None = None

    @property
    def store_uri(self) -> str:
        """The store that was asked, as it may be shown."""
        return "" if self._store is None else redaction.redact_text(self._uri)

    def find_all(self) -> list[LoadedRun]:
        return self._load_from_store(lambda opened: opened.list_runs())

    def find_by_name(self, name: str) -> list[LoadedRun]:
        place = Path(name)
        if is_run_folder(place) and self._experiment is None:
            return [load_run_from_folder(place)]
        arms = sorted(one.parent for one in place.glob("arms/*/scores.json") if is_run_folder(one.parent))
        if arms:
            return [load_run_from_folder(one) for one in arms]
        return self._load_from_store(lambda opened: opened.find_runs(name))

    def _load_from_store(self, select_runs: Any) -> list[LoadedRun]:
        try:
            if self._store is None:
                from harness.comparison.mlflow_runs import MlflowRunStore

                client = mlflow_store.open_store(self._uri)
                self._store = MlflowRunStore(client, redaction.redact_text(self._uri), self._folder, self._experiment)
            return [self._store.load_run(run) for run in select_runs(self._store)]
        except HarnessError:
            raise
        except Exception as error:
            shown, why = redaction.redact_text(self._uri), mlflow_store.error_summary(error)
            hint = "run something first, name the store with --uri, or give run folders"
            raise HarnessError(shown, f"the tracking store cannot be read: {why}", hint) from error


def _run_key(loaded_run: LoadedRun) -> str:
    return loaded_run.summary.run_id or str(Path(loaded_run.summary.folder).resolve())


def _compare_loaded_runs(
    uri: str, loaded_runs: Sequence[LoadedRun], baseline: int, score: str | None, items: int, registry: Registry | None
) -> Comparison:
    runs = tuple(one.summary for one in loaded_runs)
    keys = dict.fromkeys(key for run in runs for key in run.parameters)
    values = {key: tuple(run.parameters.get(key) for run in runs) for key in sorted(keys)}
    made = Comparison(uri, runs, {key: row for key, row in values.items() if len(set(row)) > 1}, baseline)
    if len(loaded_runs) < 2:
        if score is not None:
            raise HarnessError("--score", "one run alone is compared with nothing", "name another run, or leave it out")
        return made
    if registry is None:
        from harness.registry import discover_plugins

        registry = discover_plugins()
    bench = PairwiseComparer(loaded_runs, baseline, registry)
    pairs = bench.compare_all()
    told = select_score(pairs, score)
    moved, notes = most_changed_items(bench, pairs, told, items) if told is not None and items else ((), ())
    return Comparison(
        uri=uri,
        runs=runs,
        differences=made.differences,
        baseline=baseline,
        pairs=pairs,
        not_comparable=tuple(bench.not_comparable),
        score=told,
        items=moved,
        notes=notes,
        score_requested=score is not None,
    )
