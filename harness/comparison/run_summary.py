"""Summarize a run for a comparison, and load the scores and answers of its items from its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.evaluation.predictions import load_items, predictions_path
from harness.report import finished_run
from harness.report.finished_run import FinishedRun
from harness.types import Item
from harness.utils.redaction import flatten_settings

FilesLocation = Literal["folder", "artifacts", ""]
"""Where a run's files are: in its folder on this machine, among its MLflow artifacts, or not available (empty)."""


@dataclass(frozen=True)
class FinalScore:
    """One score of a run after the last evaluated stage.

    Attributes:
        delta: Difference to the base model; None while the run is not finished.
        verdict: Verdict of the run's own report (`better`, `worse`, `no evidence`); None without a report.
    """

    value: float
    delta: float | None
    verdict: str | None


@dataclass(frozen=True)
class RunSummary:
    """One run as a comparison shows it.

    Attributes:
        seconds: Duration of the run; None if unknown.
        scores: `suite/score` -> its final state.
        parameters: The spec with flat keys, without secrets.
        plugins: Third-party plugin that the run used -> its version and the beginning of its code's digest.
        files: Where the scores of its items are stored.
        why: Why the scores of its items are not available; empty if they are.
    """

    run_id: str
    name: str
    status: str
    mode: str
    mitigations: str
    learning_rate: str
    seconds: float | None
    scores: Mapping[str, FinalScore]
    parameters: Mapping[str, str] = field(repr=False)
    plugins: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: str = ""
    files: FilesLocation = ""
    why: str = ""


@dataclass(frozen=True)
class LoadedRun:
    """A run with its files.

    Attributes:
        finished_run: The scores of its items; None if they are not available.
        is_finished: Whether the run is finished.
        fetch_file: Maps the name of a file of the run to its path on this machine; raises HarnessError if the run
            does not have it.
    """

    summary: RunSummary
    finished_run: FinishedRun | None
    is_finished: bool
    fetch_file: Callable[[str], Path]

    def load_items(self, suite: str, stage: int) -> dict[str, Item]:
        """Load the items of a suite after a stage, by id.

        Raises:
            HarnessError: If the predictions were not stored.
        """
        name = predictions_path(Path(), suite, stage - self._earlier_stage_count()).name
        file = self.fetch_file(f"predictions/{name}")
        return {item.id: item for item in load_items(file)}

    def _earlier_stage_count(self) -> int:
        """Return how many stages of the scores belong to an earlier run, which stores their predictions itself."""
        try:
            stages = finished_run.load_run_json(self.fetch_file("data.json").parent, "data.json").get("stages")
        except HarnessError:
            return 0
        if self.finished_run is None or not isinstance(stages, list):
            return 0
        return max(0, len(self.finished_run.stages) - 1 - len(stages))


def is_run_folder(folder: Path) -> bool:
    """Return whether a folder holds a run whose scores can be loaded from its files alone."""
    return (folder / "spec.json").is_file() and (folder / "scores.json").is_file()


def load_run_from_folder(folder: Path) -> LoadedRun:
    """Load the run in a folder.

    Raises:
        HarnessError: If its files are damaged.
    """
    finished = finished_run.load_finished_run(folder)
    report = finished_run.load_run_json(folder, "report.json") if (folder / "report.json").is_file() else None
    tracking_info = finished_run.load_run_json(folder, "mlflow.json") if (folder / "mlflow.json").is_file() else {}

    has_environment = (folder / "environment.json").is_file()
    environment = finished_run.load_run_json(folder, "environment.json") if has_environment else {}

    def fetch_file(name: str) -> Path:
        if not (folder / name).is_file():
            raise HarnessError(str(folder), f"holds no {name}", "evaluate the run again to get it")
        return folder / name

    summary = RunSummary(
        run_id=str(tracking_info.get("run_id", "")),
        name=folder.resolve().name,
        status="unfinished" if report is None else "finished",
        mode=_component_names(finished.spec.get("mode")),
        mitigations=_component_names(finished.spec.get("mitigations")),
        learning_rate=str(finished.spec.get("train", {}).get("learning_rate", "")),
        seconds=None if report is None else report.get("run", {}).get("seconds"),
        scores=scores_from_report(report) if report is not None else latest_scores(finished),
        parameters=flatten_settings(finished.spec),
        plugins=plugin_versions(environment),
        folder=str(folder),
        files="folder",
    )
    return LoadedRun(summary, finished, report is not None, fetch_file)


def plugin_versions(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return plugin -> version and digest, from the content of `environment.json`."""
    plugins = environment.get("plugins") or {}
    return {name: f"{about['version']} ({about['digest'][:12]})" for name, about in sorted(plugins.items())}


def plugin_versions_from_tag(tag: str) -> dict[str, str]:
    """Return the same from the MLflow tag `harness.plugins`."""
    return {name: text for name, _, text in (each.partition(" ") for each in tag.split(", ") if each)}


def scores_from_report(report: Mapping[str, Any]) -> dict[str, FinalScore]:
    """Return `suite/score` -> its final state, from a run's report."""
    nan = float("nan")
    return {
        f"{change['suite']}/{change['name']}": FinalScore(
            value=nan if change["after"]["value"] is None else change["after"]["value"],
            delta=change["difference"]["value"],
            verdict=change["verdict"],
        )
        for change in report["changes"]
    }


def latest_scores(finished_run: FinishedRun) -> dict[str, FinalScore]:
    """Return `suite/score` -> its last value, for a run without a report."""
    latest = {evaluation.suite: evaluation for stage in finished_run.evaluations for evaluation in stage}
    return {
        f"{suite}/{score.name}": FinalScore(score.value, None, None)
        for suite, evaluation in latest.items()
        for score in evaluation.scores
    }


def _component_names(setting: Any) -> str:
    return setting if isinstance(setting, str) else ", ".join(sorted(setting or ()))
