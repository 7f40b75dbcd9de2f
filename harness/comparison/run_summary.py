"""A run that is compared: what is said of it, and where the scores and answers of its items can be had.

Knows the files of a run, from a folder or brought here from elsewhere; not how runs are found or compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.evaluation.predictions import load_predictions, predictions_path
from harness.report import finished_run
from harness.report.finished_run import FinishedRun
from harness.types import Item
from harness.utils.redaction import flatten_settings

FilesLocation = Literal["folder", "artifacts", ""]
"""Where a run's own files are: in its folder on this machine, among its artifacts, or nowhere that can be reached."""


@dataclass(frozen=True)
class FinalScore:
    """One score of a run after the last stage that it came to. delta: against the base model, None while the run has
    not finished. verdict: of the run's own report (`better`, `worse`, `no evidence`), None when it has written none."""

    value: float
    delta: float | None
    verdict: str | None


@dataclass(frozen=True)
class RunSummary:
    """One run. scores: `suite/score` -> its final state; parameters: the flat spec, without secrets.

    files: where the scores of its items are; why: what is missing of them, where they cannot be had.
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
    folder: str = ""
    files: FilesLocation = ""
    why: str = ""


@dataclass(frozen=True)
class LoadedRun:
    """A run with its files. finished_run: None where they cannot be had. is_finished: whether it came to its end.

    fetch_file: name of a file of the run -> where it is here; raises HarnessError when there is none.
    """

    summary: RunSummary
    finished_run: FinishedRun | None
    is_finished: bool
    fetch_file: Callable[[str], Path]

    def load_items(self, suite: str, stage: int) -> dict[str, Item]:
        """The items of a suite after a stage, by id. Raises HarnessError when they were not kept."""
        file = self.fetch_file(
            f"predictions/{predictions_path(Path(), suite, stage - self._earlier_stage_count()).name}"
        )
        return {item.id: item for item in load_predictions(file).items}

    def _earlier_stage_count(self) -> int:
        """How many of the stages that the scores tell of are an earlier run's, whose answers are in its own folder."""
        try:
            own = finished_run.load_run_json(self.fetch_file("data.json").parent, "data.json").get("stages")
        except HarnessError:
            return 0
        return (
            max(0, len(self.finished_run.stages) - 1 - len(own))
            if self.finished_run is not None and isinstance(own, list)
            else 0
        )


def is_run_folder(folder: Path) -> bool:
    """Whether a folder holds a run that can be read without asking anybody."""
    return (folder / "spec.json").is_file() and (folder / "scores.json").is_file()


def load_run_from_folder(folder: Path) -> LoadedRun:
    """The run in a folder. Raises HarnessError when its files are damaged."""
    read = finished_run.load_finished_run(folder)
    report = finished_run.load_run_json(folder, "report.json") if (folder / "report.json").is_file() else None
    tracked = finished_run.load_run_json(folder, "mlflow.json") if (folder / "mlflow.json").is_file() else {}

    def fetch(name: str) -> Path:
        if not (folder / name).is_file():
            raise HarnessError(str(folder), f"holds no {name}", "evaluate the run again to have it")
        return folder / name

    run = RunSummary(
        run_id=str(tracked.get("run_id", "")),
        name=folder.resolve().name,
        status="unfinished" if report is None else "finished",
        mode=_component_names(read.spec.get("mode")),
        mitigations=_component_names(read.spec.get("mitigations")),
        learning_rate=str(read.spec.get("train", {}).get("learning_rate", "")),
        seconds=None if report is None else report.get("run", {}).get("seconds"),
        scores=scores_from_report(report) if report is not None else latest_scores(read),
        parameters=flatten_settings(read.spec),
        folder=str(folder),
        files="folder",
    )
    return LoadedRun(run, read, report is not None, fetch)


def scores_from_report(report: Mapping[str, Any]) -> dict[str, FinalScore]:
    """`suite/score` -> its final state, out of a run's report."""
    nan = float("nan")
    return {
        f"{one['suite']}/{one['name']}": FinalScore(
            value=nan if one["after"]["value"] is None else one["after"]["value"],
            delta=one["difference"]["value"],
            verdict=one["verdict"],
        )
        for one in report["changes"]
    }


def latest_scores(finished_run: FinishedRun) -> dict[str, FinalScore]:
    """`suite/score` -> what was measured last, of a run without a report."""
    latest = {one.suite: one for stage in finished_run.evaluations for one in stage}
    return {
        f"{suite}/{score.name}": FinalScore(score.value, None, None)
        for suite, one in latest.items()
        for score in one.scores
    }


def _component_names(setting: Any) -> str:
    return setting if isinstance(setting, str) else ", ".join(sorted(setting or ()))
