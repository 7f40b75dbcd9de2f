"""Load runs from an MLflow tracking store, with their files from a folder on this machine or from their artifacts.

Reads what `harness.tracking.tracker` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.comparison.run_summary import (
    FilesLocation,
    FinalScore,
    LoadedRun,
    RunSummary,
    is_run_folder,
    load_run_from_folder,
    plugin_versions_from_tag,
    scores_from_report,
)
from harness.errors import HarnessError
from harness.report import finished_run
from harness.report.finished_run import FinishedRun
from harness.tracking import mlflow_store
from harness.utils import redaction
from harness.utils.json_depth import load_json
from harness.utils.redaction import flatten_settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MAX_LISTED_RUNS = 10
DELTA_SUFFIX = "/delta"


class MlflowRunStore:
    """The runs of a tracking store.

    Args:
        client: Client of the store.
        uri: Address of the store for messages, without secrets.
        folder: Existing folder that artifacts are downloaded to.
        experiment: MLflow experiment; None: all.

    Raises:
        HarnessError: If the store has no run of harness, or no such experiment.
    """

    def __init__(self, client: MlflowClient, uri: str, folder: Path, experiment: str | None = None) -> None:
        self._client, self._uri, self._folder, self._experiment = client, uri, folder, experiment
        self._runs = list(self._iter_runs())
        if not self._runs:
            where = "" if experiment is None else f"the experiment {experiment!r} "
            raise HarnessError(uri, f"{where}holds no run of harness", "run a spec first: harness run SPEC")

    def list_runs(self) -> list[Run]:
        """Return the runs that trained, oldest first: arms, but not the experiments that hold them."""
        return [run for run in self._runs if not _is_experiment(run)]

    def find_runs(self, name: str) -> list[Run]:
        """Find the run with this id, name or folder; for an experiment of arms, all its arms.

        Raises:
            HarnessError: If there is no such run, more than one, or an experiment without arms.
        """
        run = self._find_run(name)
        if not _is_experiment(run):
            return [run]
        arms = [arm for arm in self.list_runs() if arm.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        if not arms:
            raise HarnessError(self._uri, f"the experiment {name!r} has no arm yet", "run it: harness run --resume")
        return arms

    def load_run(self, run: Run) -> LoadedRun:
        """Load the summary of a run, and its files where they are available."""
        run_id = run.info.run_id
        folder = _local_folder(run)
        if folder is not None:
            loaded_run = load_run_from_folder(folder)
            verdicts = {key: score.verdict for key, score in loaded_run.summary.scores.items()}
            summary = self._summarize_run(run, verdicts, loaded_run.summary.parameters)
            return replace(loaded_run, summary=replace(summary, files="folder", folder=str(folder)))
        artifact_names = {artifact.path for artifact in self._client.list_artifacts(run_id)}
        report = self._load_artifact_json(run_id, "report.json") if "report.json" in artifact_names else None
        finished, reason = self._load_finished_run(run_id, artifact_names)
        verdicts = {key: score.verdict for key, score in scores_from_report(report).items()} if report else {}
        # The parameters lack the defaults; spec.json has them.
        spec = self._load_artifact_json(run_id, "spec.json") if "spec.json" in artifact_names else None
        parameters = flatten_settings(spec) if spec is not None else run.data.params
        files: FilesLocation = "" if finished is None else "artifacts"
        summary = replace(self._summarize_run(run, verdicts, parameters), files=files, why=reason)
        is_finished = str(run.info.status) == "FINISHED"
        return LoadedRun(summary, finished, is_finished, lambda name: self._download_artifact(run_id, name))

    def _iter_runs(self) -> Iterator[Run]:
        """Yield the parent runs that harness created, oldest first."""
        client = self._client
        experiments = {entry.name: entry.experiment_id for entry in _iter_pages(client.search_experiments)}
        if self._experiment is not None and self._experiment not in experiments:
            names = ", ".join(sorted(experiments)) or "none"
            raise HarnessError(self._uri, f"there is no experiment {self._experiment!r}", f"there are: {names}")
        ids = [experiments[self._experiment]] if self._experiment is not None else list(experiments.values())
        yield from _iter_pages(
            lambda page_token: client.search_runs(
                ids, "tags.`harness.id` != ''", order_by=["attributes.start_time ASC"], page_token=page_token
            )
        )

    def _find_run(self, name: str) -> Run:
        tracking_info = _load_tracking_info(Path(name))
        wanted = tracking_info["run_id"] if tracking_info else name
        matches = [run for run in self._runs if wanted == run.info.run_id] or [
            run for run in self._runs if wanted in (run.info.run_name, run.data.tags["harness.id"])
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(run.info.run_id for run in matches)
            raise HarnessError(self._uri, f"{len(matches)} runs are called {name!r}", f"give an id: {ids}")
        if tracking_info:
            tracked_at = redaction.redact_text(str(tracking_info["uri"]))
            what = f"the run in {name!r} is not in this store"
            raise HarnessError(self._uri, what, f"it was tracked at {tracked_at}; see --uri")
        latest = ", ".join(run.data.tags["harness.id"] for run in reversed(self._runs[-MAX_LISTED_RUNS:]))
        older = len(self._runs) - MAX_LISTED_RUNS
        more = f" and {older} older ones" if older > 0 else ""
        raise HarnessError(self._uri, f"there is no run {name!r}", f"there are: {latest}{more}")

    def _load_finished_run(self, run_id: str, artifact_names: set[str]) -> tuple[FinishedRun | None, str]:
        """Load the scores of the run's items from its artifacts; None and the reason if they are not available."""
        missing = [name for name in ("spec.json", "scores.json") if name not in artifact_names]
        if missing:
            return None, f"its artifacts have no {' and no '.join(missing)}"
        try:
            for name in ("spec.json", "scores.json"):
                self._download_artifact(run_id, name)
            return finished_run.load_finished_run(self._folder / run_id), ""
        except HarnessError as error:
            return None, error.what

    def _load_artifact_json(self, run_id: str, name: str) -> dict[str, Any]:
        document: dict[str, Any] = load_json(self._download_artifact(run_id, name).read_text(encoding="utf-8"))
        return document

    def _download_artifact(self, run_id: str, name: str) -> Path:
        target = self._folder / run_id / name
        if target.is_file():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Kinds of stores differ in where below the folder they put a file.
            downloaded = Path(self._client.download_artifacts(run_id, name, str(self._folder / run_id)))
        except Exception as error:
            what = f"cannot download the artifact {name}: {mlflow_store.error_summary(error)}"
            raise HarnessError(f"run {run_id}", what, "check that the store has it") from error
        if downloaded != target:
            downloaded.replace(target)
        return target

    def _summarize_run(self, run: Run, verdicts: Mapping[str, str | None], parameters: Mapping[str, str]) -> RunSummary:
        metrics: Mapping[str, float] = run.data.metrics
        # In the order of the report, which is that of the spec. MLflow returns the value of each metric's highest step,
        # which is the last stage.
        keys = [*verdicts, *(key for key in sorted(metrics) if key not in verdicts and _is_score(key))]
        started, ended = run.info.start_time, run.info.end_time
        return RunSummary(
            run_id=run.info.run_id,
            name=run.data.tags["harness.id"],
            status=str(run.info.status).lower(),
            mode=run.data.tags.get("mode", ""),
            mitigations=run.data.tags.get("mitigations", ""),
            learning_rate=parameters.get("train.learning_rate", ""),
            seconds=None if not (started and ended) else (ended - started) / 1000,
            scores={
                key: FinalScore(metrics[key], metrics.get(key + DELTA_SUFFIX), verdicts.get(key))
                for key in keys
                if key in metrics
            },
            parameters={key: value for key, value in parameters.items() if not key.startswith("arm/")},
            plugins=plugin_versions_from_tag(run.data.tags.get("harness.plugins", "")),
        )


def _is_score(key: str) -> bool:
    return not key.endswith(DELTA_SUFFIX) and not key.startswith(("system/", "forgetting/"))


def _is_experiment(run: Run) -> bool:
    return run.data.tags.get("harness.kind") == "experiment"


def _local_folder(run: Run) -> Path | None:
    """Return the run's folder if it is on this machine and still belongs to the run."""
    folder = Path(run.data.tags.get("harness.folder") or "/nowhere")
    tracking_info = _load_tracking_info(folder)
    same_run = tracking_info is not None and tracking_info.get("run_id") == run.info.run_id
    return folder if same_run and is_run_folder(folder) else None


def _load_tracking_info(folder: Path) -> dict[str, Any] | None:
    """Load what the tracker stored in a run's folder; None if there is no such folder or it was not tracked."""
    return finished_run.load_run_json(folder, "mlflow.json") if (folder / "mlflow.json").is_file() else None


def _iter_pages(search: Any) -> Iterator[Any]:
    """Yield the entries of all pages of an MLflow search that takes a `page_token`."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return
