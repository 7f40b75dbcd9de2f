"""One run and its stages in an MLflow store: each method is a few calls to the server.

Every method raises whatever the store raises. Threads and events are handled elsewhere.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.tracking import mlflow_entries, mlflow_store
from harness.tracking.artifacts import redacted_file
from harness.types import Plan, Stage
from harness.utils import redaction
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

PARENT_RUN_TAG = "mlflow.parentRunId"
StepsByMetric = dict[str, set[int]]
"""Metric -> the steps at which it has been logged."""


class MlflowRun:
    """A parent run and the child run of the current stage.

    Attributes:
        client: The store's client.
        secrets: Values that are redacted before they are logged.
        resumed: Whether the run existed before. Parameters and metrics that it has are then not logged twice.
        run_id: Id of the parent run.
        stage_run_id: Id of the current stage's run; None between stages.
        model_registered: Whether the run's model is registered already.
    """

    def __init__(self, client: MlflowClient, run: Run, secrets: Secrets, *, resumed: bool = False) -> None:
        self.client, self.secrets, self.resumed = client, secrets, resumed
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.name = str(run.info.run_name)
        self.stage_run_id: str | None = None
        self.model_registered = resumed and "registered" in run.data.tags
        self._params = set(run.data.params) if resumed else set()
        self._points: StepsByMetric = _load_logged_steps(client, run) if resumed else {}
        self._child_points: StepsByMetric = {}

    @classmethod
    def create(
        cls,
        uri: str,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        secrets: Secrets,
        parent_run_id: str | None = None,
    ) -> MlflowRun:
        """Create a run, and its experiment if it is new.

        Args:
            uri: The tracking URI.
            experiment: Name of the experiment.
            name: Name of the run.
            tags: Tags of the run.
            secrets: Values to redact.
            parent_run_id: Id of the parent run, for an arm of an experiment.
        """
        client = mlflow_store.open_store(uri, create=True)
        experiment_id = _get_or_create_experiment(client, experiment, mlflow_store.artifact_location(uri))
        all_tags = {
            **_user_tags(),
            **_safe_tags(tags, secrets),
            **({PARENT_RUN_TAG: parent_run_id} if parent_run_id else {}),
        }
        return cls(client, client.create_run(experiment_id, run_name=name, tags=all_tags), secrets)

    @classmethod
    def reopen(cls, uri: str, run_id: str, tags: Mapping[str, str], secrets: Secrets) -> MlflowRun:
        """Reopen the run of a resumed run.

        Raises:
            LookupError: The store no longer has the run.
        """
        client = mlflow_store.open_store(uri)
        try:
            run = client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise LookupError(f"there is no run {run_id}") from error
            raise
        if run.info.lifecycle_stage != "active":
            raise LookupError(f"the run {run_id} has been deleted")
        client.update_run(run_id, status="RUNNING")
        mlflow_run = cls(client, run, secrets, resumed=True)
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        resumed = int(run.data.tags.get("harness.resumed", "0")) + 1
        mlflow_run.set_tags({**tags, "harness.resumed": str(resumed)})
        return mlflow_run

    def start_stage_run(self, stage_index: int, stage: Stage) -> None:
        """Create or reopen the child run of a stage, and log the stage's settings."""
        existing = self._find_stage_run(stage_index) if self.resumed else None
        if existing is None:
            tags = {**_user_tags(), PARENT_RUN_TAG: self.run_id, "stage": str(stage_index), "harness.kind": "stage"}
            child = self.client.create_run(self.experiment_id, run_name=f"{self.name}/{stage.name}", tags=tags)
            self.stage_run_id, self._child_points = child.info.run_id, {}
            self.log_params(self.stage_run_id, mlflow_entries.stage_parameters(stage))
        else:
            self.stage_run_id, self._child_points = existing.info.run_id, _load_logged_steps(self.client, existing)
            self.client.update_run(self.stage_run_id, status="RUNNING")

    def end_stage_run(self, status: str) -> None:
        """End the child run, if there is one."""
        if self.stage_run_id is not None:
            self.client.set_terminated(self.stage_run_id, status)
            self.stage_run_id = None

    def end(self, status: str) -> None:
        """End the run with `FINISHED` or `FAILED`."""
        self.client.set_terminated(self.run_id, status)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        for name, text in _safe_tags({key: value}, self.secrets).items():
            self.client.set_tag(self.run_id, name, text)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for key, value in tags.items():
            self.set_tag(key, value)

    def log_params(self, run_id: str, flat: Mapping[str, str]) -> None:
        """Log parameters in batches within the server's limits. Parameters that the run has keep their values."""
        from mlflow.entities import Param

        known = self._params if run_id == self.run_id else set()
        params = [Param(key, self.secrets.redact(value)) for key, value in flat.items() if key not in known]
        for batch in mlflow_entries.split_batches(params, mlflow_entries.MAX_PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=batch)

    def log_metrics(self, metrics: Sequence[Metric], *, to_stage_run: bool = False) -> None:
        """Log metrics of the run or of the current stage. Values that exist for a step are kept."""
        run_id, points = (
            (self._require_stage_run_id(), self._child_points) if to_stage_run else (self.run_id, self._points)
        )
        new = [metric for metric in metrics if not self.resumed or _mark_if_new(metric, points)]
        for batch in mlflow_entries.split_batches(new, mlflow_entries.MAX_METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=batch)

    def log_datasets(self, plan: Plan, digests: Mapping[str, str], stage: Stage | None = None) -> None:
        """Log the data sets of a stage, or those of the whole run with its suites, with their digests."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        stages = plan.stages if stage is None else (stage,)
        used = [(stage_source.source, "training") for used_stage in stages for stage_source in used_stage.sources]
        held_out = [(suite.source, "evaluation") for suite in plan.suites] if stage is None else []
        inputs = []
        for source, context in dict.fromkeys(used + held_out):
            kind, options = plan.sources[source]
            digest = digests.get(source, "").removeprefix("sha256:")[: mlflow_entries.MAX_DIGEST_CHARS]
            origin = self.secrets.redact(json.dumps(redaction.redact(options), ensure_ascii=False, default=str))
            dataset = Dataset(name=source, digest=digest, source_type=kind, source=origin)
            inputs.append(DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", context)]))
        self.client.log_inputs(self.run_id if stage is None else self._require_stage_run_id(), inputs)

    def log_json(self, name: str, value: Any) -> None:
        """Log a value as a JSON artifact."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
        self.client.log_text(self.run_id, self.secrets.redact(text), name)

    def log_tables(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Log tables (`columns`, `data`: rows) as artifacts that MLflow's page shows as tables."""
        for name, table in tables.items():
            self.client.log_text(self.run_id, self.secrets.redact(json.dumps(table)), name)
        known = [{"path": name, "type": "table"} for name in tables]
        if known:
            self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(known))

    def set_table_view(self, state: str) -> None:
        """Add a shared view of the experiment's runs to MLflow's page."""
        self.client.set_experiment_tag(self.experiment_id, mlflow_entries.TABLE_VIEW_TAG, state)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Log a local file as an artifact, with secrets redacted."""
        with redacted_file(file, self.secrets) as clean:
            self.client.log_artifact(self.run_id, str(clean), folder)

    def register_model(self, name: str, path: str) -> str:
        """Register files of this run as a new version of a model and return the version number."""
        from mlflow import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(name, f"runs:/{self.run_id}/{path}", self.run_id)
        return str(version.version)

    def _find_stage_run(self, stage_index: int) -> Run | None:
        query = f"tags.`{PARENT_RUN_TAG}` = '{self.run_id}' and tags.`stage` = '{stage_index}'"
        runs = self.client.search_runs([self.experiment_id], query, order_by=["attributes.start_time DESC"])
        return runs[0] if runs else None

    def _require_stage_run_id(self) -> str:
        if self.stage_run_id is None:
            raise RuntimeError("no stage is active")
        return self.stage_run_id


def _mark_if_new(metric: Metric, logged_steps: StepsByMetric) -> bool:
    """Return whether the metric has no value at this step yet, and record that it has one now."""
    steps = logged_steps.setdefault(metric.key, set())
    is_new = metric.step not in steps
    steps.add(metric.step)
    return is_new


def _load_logged_steps(client: MlflowClient, run: Run) -> StepsByMetric:
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    return {key: {point.step for point in client.get_metric_history(run.info.run_id, key)} for key in keys}


def _get_or_create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            # Without this tag MLflow's page treats it as a GenAI experiment and shows traces instead of runs.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=location, tags=kind))
        except MlflowException:
            # Another run may have created it in the meantime.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def _safe_tags(tags: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    """Return tags with allowed names, without secrets, within the server's limit."""
    limit = mlflow_entries.MAX_TAG_CHARS
    return {redaction.mlflow_name(key): secrets.redact(value)[:limit] for key, value in tags.items()}


def _user_tags() -> dict[str, str]:
    # The tags of MLflow's fluent functions, so that its page shows the user and the source of a run.
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "harness", "mlflow.source.type": "LOCAL"}
