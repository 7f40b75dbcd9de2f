"""A run that is compared: what is said of it, and where the scores and answers of its items can be had.

Knows the files of a run, from a folder or brought here from elsewhere; not how runs are found or compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.evaluation.predictions import item_path, read_items
from harness.report import finished_run
from harness.report.finished_run import Kept
from harness.types import Item
from harness.utils.redaction import parameters

Files = Literal["folder", "artifacts", ""]
"""Where a run's own files are: in its folder on this machine, among its artifacts, or nowhere that can be reached."""


@dataclass(frozen=True)
class Final:
    """One score of a run after the last stage that it came to. delta: against the base model, None while the run has
    not finished. verdict: of the run's own report (`better`, `worse`, `no evidence`), None when it has written none."""

    value: float
    delta: float | None
    verdict: str | None


@dataclass(frozen=True)
class Compared:
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
    scores: Mapping[str, Final]
    parameters: Mapping[str, str] = field(repr=False)
    folder: str = ""
    files: Files = ""
    why: str = ""


@dataclass(frozen=True)
class Found:
    """A run with its files. kept: None where they cannot be had. finished: whether it came to its end.

    fetch: name of a file of the run -> where it is here; raises HarnessError when there is none.
    """

    run: Compared
    kept: Kept | None
    finished: bool
    fetch: Callable[[str], Path]

    def items(self, suite: str, stage: int) -> dict[str, Item]:
        """The items of a suite after a stage, by id. Raises HarnessError when they were not kept."""
        file = self.fetch(f"predictions/{item_path(Path(), suite, stage - self._before()).name}")
        return {item.id: item for item in read_items(file).items}

    def _before(self) -> int:
        """How many of the stages that the scores tell of are an earlier run's, whose answers are in its own folder."""
        try:
            own = finished_run.document(self.fetch("data.json").parent, "data.json").get("stages")
        except HarnessError:
            return 0
        return max(0, len(self.kept.stages) - 1 - len(own)) if self.kept is not None and isinstance(own, list) else 0


def is_run(place: Path) -> bool:
    """Whether a folder holds a run that can be read without asking anybody."""
    return (place / "spec.json").is_file() and (place / "scores.json").is_file()


def from_folder(place: Path) -> Found:
    """The run in a folder. Raises HarnessError when its files are damaged."""
    read = finished_run.read(place)
    report = finished_run.document(place, "report.json") if (place / "report.json").is_file() else None
    tracked = finished_run.document(place, "mlflow.json") if (place / "mlflow.json").is_file() else {}

    def fetch(name: str) -> Path:
        if not (place / name).is_file():
            raise HarnessError(str(place), f"holds no {name}", "evaluate the run again to have it")
        return place / name

    run = Compared(
        run_id=str(tracked.get("run_id", "")),
        name=place.resolve().name,
        status="unfinished" if report is None else "finished",
        mode=_names(read.spec.get("mode")),
        mitigations=_names(read.spec.get("mitigations")),
        learning_rate=str(read.spec.get("train", {}).get("learning_rate", "")),
        seconds=None if report is None else report.get("run", {}).get("seconds"),
        scores=reported(report) if report is not None else measured(read),
        parameters=parameters(read.spec),
        folder=str(place),
        files="folder",
    )
    return Found(run, read, report is not None, fetch)


def reported(report: Mapping[str, Any]) -> dict[str, Final]:
    """`suite/score` -> its final state, out of a run's report."""
    nan = float("nan")
    return {
        f"{one['suite']}/{one['name']}": Final(
            value=nan if one["after"]["value"] is None else one["after"]["value"],
            delta=one["difference"]["value"],
            verdict=one["verdict"],
        )
        for one in report["changes"]
    }


def measured(read: Kept) -> dict[str, Final]:
    """`suite/score` -> what was measured last, of a run without a report."""
    latest = {one.suite: one for stage in read.evaluations for one in stage}
    return {
        f"{suite}/{score.name}": Final(score.value, None, None) for suite, one in latest.items() for score in one.scores
    }


def _names(slot: Any) -> str:
    return slot if isinstance(slot, str) else ", ".join(sorted(slot or ()))
