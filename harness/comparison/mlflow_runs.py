"""Runs as an MLflow tracking store knows them, with their files: a folder on this machine, or their artifacts.

Knows how `harness.tracking.tracker` writes to a store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.comparison.run_summary import FinalScore, LoadedRun, RunSummary, is_run_folder, load_run_from_folder
from harness.errors import HarnessError
from harness.report import finished_run
from harness.report.finished_run import FinishedRun
from harness.tracking import mlflow_store
from harness.utils import redaction

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_LISTED_RUNS = 10
DELTA_SUFFIX = "/delta"


class MlflowRunStore:
    """A tracking store that runs are read from. uri: as it may be shown. folder: where artifacts are brought to."""

    def __init__(self, client: MlflowClient, uri: str, folder: Path, experiment: str | None = None) -> None:
        self._client, self._uri, self._folder, self._experiment = client, uri, folder, experiment
        self._known = list(self._iter_runs())
        if not self._known:
            where = "" if experiment is None else f"the experiment {experiment!r} "
            raise HarnessError(uri, f"{where}holds no run of harness", "run a spec first: harness run SPEC")

    def list_runs(self) -> list[Run]:
        """The runs that trained, oldest first; arms among them, the experiments that hold arms not."""
        return [run for run in self._known if not _is_experiment(run)]

    def find_runs(self, name: str) -> list[Run]:
        """The run of an id, a name or a folder; of an experiment of arms, all its arms. Raises HarnessError."""
        run = self._find_run(name)
        if not _is_experiment(run):
            return [run]
        arms = [one for one in self.list_runs() if one.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        if not arms:
            raise HarnessError(self._uri, f"the experiment {name!r} has no arm yet", "run it: harness run --resume")
        return arms

    def load_run(self, run: Run) -> LoadedRun:
        """What the store says of a run, with its files where they can be had."""
        run_id = run.info.run_id
        here = _local_folder(run)
        if here is not None:
            found = load_run_from_folder(here)
            compared = self._summarize_run(run, found.summary.scores, "folder", str(here))
            return LoadedRun(compared, found.finished_run, found.is_finished, found.fetch_file)
        there = {one.path for one in self._client.list_artifacts(run_id)}
        report = self._load_artifact_json(run_id, "report.json") if "report.json" in there else None
        read, why = self._load_finished_run(run_id, there)
        scores = {f"{one['suite']}/{one['name']}": one["verdict"] for one in report["changes"]} if report else {}
        compared = self._summarize_run(run, scores, "" if read is None else "artifacts", why=why)
        finished = str(run.info.status) == "FINISHED"
        return LoadedRun(compared, read, finished, lambda name: self._download_artifact(run_id, name))

    def _iter_runs(self) -> Iterator[Run]:
        """The parent runs that harness has made, oldest first."""
        client = self._client
        experiments = {one.name: one.experiment_id for one in _iter_pages(client.search_experiments)}
        if self._experiment is not None and self._experiment not in experiments:
            there = ", ".join(sorted(experiments)) or "none"
            raise HarnessError(self._uri, f"there is no experiment {self._experiment!r}", f"there are: {there}")
        ids = [experiments[self._experiment]] if self._experiment is not None else list(experiments.values())
        yield from _iter_pages(
            lambda page_token: client.search_runs(
                ids, "tags.`harness.id` != ''", order_by=["attributes.start_time ASC"], page_token=page_token
            )
        )

    def _find_run(self, name: str) -> Run:
        known, uri = self._known, self._uri
        tracked = _load_tracking_info(Path(name))
        wanted = tracked["run_id"] if tracked else name
        found = [run for run in known if wanted == run.info.run_id]
        found = found or [run for run in known if wanted in (run.info.run_name, run.data.tags["harness.id"])]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run.info.run_id for run in found)
            raise HarnessError(uri, f"{len(found)} runs are called {name!r}", f"give an id: {ids}")
        if tracked:
            there = redaction.redact_text(str(tracked["uri"]))
            raise HarnessError(uri, f"the run in {name!r} is not here", f"it was tracked at {there}; see --uri")
        latest = ", ".join(str(run.info.run_name) for run in reversed(known[-MAX_LISTED_RUNS:]))
        more = f" and {len(known) - MAX_LISTED_RUNS} older ones" if len(known) > MAX_LISTED_RUNS else ""
        raise HarnessError(uri, f"there is no run {name!r}", f"there are: {latest}{more}")

    def _load_finished_run(self, run_id: str, artifact_names: set[str]) -> tuple[FinishedRun | None, str]:
        """The scores of the run's items out of its artifacts; None and why, where they cannot be had."""
        missing = [name for name in ("spec.json", "scores.json") if name not in artifact_names]
        if missing:
            return None, f"its artifacts have no {' and no '.join(missing)}"
        try:
            for name in ("spec.json", "scores.json"):
                self._download_artifact(run_id, name)
            return finished_run.load_finished_run(self._folder / run_id), ""
        except HarnessError as error:
            return None, f"{error.what}"

    def _load_artifact_json(self, run_id: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._download_artifact(run_id, name).read_text(encoding="utf-8"))
        return found

    def _download_artifact(self, run_id: str, name: str) -> Path:
        folder = self._folder / run_id
        if (folder / name).is_file():
            return folder / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # Where in the folder it lands, below its own path or not, is for each kind of store to say.
            here = Path(self._client.download_artifacts(run_id, name, str(folder)))
        except Exception as error:
            what = f"its artifact {name} cannot be had: {mlflow_store.error_summary(error)}"
            raise HarnessError(f"run {run_id}", what, "see whether the store has it") from error
        if here != folder / name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            here.replace(folder / name)
        return folder / name

    def _summarize_run(
        self, run: Run, reported: Mapping[str, Any], files: Any, folder: str = "", why: str = ""
    ) -> RunSummary:
        metrics: Mapping[str, float] = run.data.metrics
        verdicts = {key: one.verdict if isinstance(one, FinalScore) else one for key, one in reported.items()}
        # In the order of the report, the domain before the general suite as in the spec. Of each metric MLflow gives
        # the value of the highest step, which is the last stage.
        keys = [*verdicts, *(key for key in sorted(metrics) if key not in verdicts and _is_score(key))]
        started, ended = run.info.start_time, run.info.end_time
        return RunSummary(
            run_id=run.info.run_id,
            name=str(run.info.run_name),
            status=str(run.info.status).lower(),
            mode=run.data.tags.get("mode", ""),
            mitigations=run.data.tags.get("mitigations", ""),
            learning_rate=run.data.params.get("train.learning_rate", ""),
            seconds=None if not (started and ended) else (ended - started) / 1000,
            scores={
                key: FinalScore(metrics[key], metrics.get(key + DELTA_SUFFIX), verdicts.get(key))
                for key in keys
                if key in metrics
            },
            parameters={key: value for key, value in run.data.params.items() if not key.startswith("arm/")},
            folder=folder,
            files=files,
            why=why,
        )


def _is_score(key: str) -> bool:
    return not key.endswith(DELTA_SUFFIX) and not key.startswith(("system/", "forgetting/"))


def _is_experiment(run: Run) -> bool:
    return run.data.tags.get("harness.kind") == "experiment"


def _local_folder(run: Run) -> Path | None:
    """The run's folder, where it is on this machine and still the run's."""
    folder = Path(run.data.tags.get("harness.folder") or "/nowhere")
    tracked = _load_tracking_info(folder)
    return folder if tracked and tracked.get("run_id") == run.info.run_id and is_run_folder(folder) else None


def _load_tracking_info(folder: Path) -> dict[str, Any] | None:
    """What the tracker left in a run's folder; None where there is no such folder or it was not tracked."""
    return finished_run.load_run_json(folder, "mlflow.json") if (folder / "mlflow.json").is_file() else None


def _iter_pages(search: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return
