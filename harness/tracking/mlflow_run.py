"""One run and its stages in an MLflow store: every method is a handful of calls to the server.

Knows MLflow, and nothing of events or threads. Any method raises whatever the store raises.
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
"""Metric -> the steps that it has been written at."""


class MlflowRun:
    """A parent run, and a child run for the stage that is going on.

    resumed: whether the run was there before and is gone on with: what it has already is then not written twice.
    model_registered: whether its model is a version of a registered one already.
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
        """Make the experiment, if it is new, and the run `name` in it. parent_run_id: the id of the run that it belongs
        to."""
        client = mlflow_store.open_store(uri, create=True)
        experiment_id = _get_or_create_experiment(client, experiment, mlflow_store.artifact_location(uri))
        given = {**_user_tags(), **tags, **({PARENT_RUN_TAG: parent_run_id} if parent_run_id else {})}
        return cls(client, client.create_run(experiment_id, run_name=name, tags=given), secrets)

    @classmethod
    def reopen(cls, uri: str, run_id: str, tags: Mapping[str, str], secrets: Secrets) -> MlflowRun:
        """Go on with a run. Raises LookupError when the store has it no more."""
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
        made = cls(client, run, secrets, resumed=True)
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
        resumed = int(run.data.tags.get("harness.resumed", "0")) + 1
        made.set_tags({**tags, "harness.resumed": str(resumed)})
        return made

    def start_stage_run(self, stage_index: int, stage: Stage) -> None:
        """Make the child run of a stage, or open the one that it has, and write its settings."""
        found = self._find_stage_run(stage_index) if self.resumed else None
        if found is None:
            tags = {**_user_tags(), PARENT_RUN_TAG: self.run_id, "stage": str(stage_index), "harness.kind": "stage"}
            child = self.client.create_run(self.experiment_id, run_name=f"{self.name}/{stage.name}", tags=tags)
            self.stage_run_id, self._child_points = child.info.run_id, {}
            self.log_params(self.stage_run_id, mlflow_entries.stage_parameters(stage))
        else:
            self.stage_run_id, self._child_points = found.info.run_id, _load_logged_steps(self.client, found)
            self.client.update_run(self.stage_run_id, status="RUNNING")

    def end_stage_run(self, status: str) -> None:
        """End the child run; nothing when there is none."""
        if self.stage_run_id is not None:
            self.client.set_terminated(self.stage_run_id, status)
            self.stage_run_id = None

    def end(self, status: str) -> None:
        """End the run with `FINISHED` or `FAILED`."""
        self.client.set_terminated(self.run_id, status)

    def set_tag(self, key: str, value: str) -> None:
        """Write one tag of the run."""
        self.client.set_tag(
            self.run_id, redaction.mlflow_name(key), self.secrets.redact(value)[: mlflow_entries.MAX_TAG_CHARS]
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags of the run."""
        for key, value in tags.items():
            self.set_tag(key, value)

    def log_params(self, run_id: str, flat: Mapping[str, str]) -> None:
        """Write parameters, in batches that every server takes. Those that a run has already keep their values."""
        from mlflow.entities import Param

        known = self._params if run_id == self.run_id else set()
        params = [Param(key, self.secrets.redact(value)) for key, value in flat.items() if key not in known]
        for batch in mlflow_entries.split_batches(params, mlflow_entries.MAX_PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=batch)

    def log_metrics(self, metrics: Sequence[Metric], *, to_stage_run: bool = False) -> None:
        """Write metrics of the run, or of the stage that is going on. A point that is there already stays as it is."""
        run_id, points = (
            (self._require_stage_run_id(), self._child_points) if to_stage_run else (self.run_id, self._points)
        )
        new = [one for one in metrics if not self.resumed or _mark_if_new(one, points)]
        for batch in mlflow_entries.split_batches(new, mlflow_entries.MAX_METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=batch)

    def log_datasets(self, plan: Plan, digests: Mapping[str, str], stage: Stage | None = None) -> None:
        """Write the data sets of the stage going on, or those of the whole run with its suites, with their digests."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        stages = plan.stages if stage is None else (stage,)
        used = [(part.source, "training") for one in stages for part in one.sources]
        held_out = [(suite.source, "evaluation") for suite in plan.suites] if stage is None else []
        made = []
        for source, context in dict.fromkeys(used + held_out):
            kind, options = plan.sources[source]
            digest = digests.get(source, "").removeprefix("sha256:")[: mlflow_entries.MAX_DIGEST_CHARS]
            origin = self.secrets.redact(json.dumps(redaction.redact(options), ensure_ascii=False, default=str))
            dataset = Dataset(name=source, digest=digest, source_type=kind, source=origin)
            made.append(DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", context)]))
        self.client.log_inputs(self.run_id if stage is None else self._require_stage_run_id(), made)

    def log_json(self, name: str, value: Any) -> None:
        """Keep a value as a JSON file of the run."""
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
        self.client.log_text(self.run_id, self.secrets.redact(text), name)

    def log_tables(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep tables (`columns`, `data`: rows) as files that MLflow's page shows as such."""
        for name, table in tables.items():
            self.client.log_text(self.run_id, self.secrets.redact(json.dumps(table)), name)
        known = [{"path": name, "type": "table"} for name in tables]
        if known:
            self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps(known))

    def set_table_view(self, state: str) -> None:
        """Offer a table of the experiment's runs with these columns on MLflow's page."""
        self.client.set_experiment_tag(self.experiment_id, mlflow_entries.TABLE_VIEW_TAG, state)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Keep a file of this machine as a file of the run, without the secrets that are known."""
        with redacted_file(file, self.secrets) as clean:
            self.client.log_artifact(self.run_id, str(clean), folder)

    def register_model(self, name: str, path: str) -> str:
        """Make a version of the registered model `name` from files of this run, and give its number."""
        from mlflow import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self.client.create_model_version(name, f"runs:/{self.run_id}/{path}", self.run_id)
        return str(made.version)

    def _find_stage_run(self, stage_index: int) -> Run | None:
        query = f"tags.`{PARENT_RUN_TAG}` = '{self.run_id}' and tags.`stage` = '{stage_index}'"
        found = self.client.search_runs([self.experiment_id], query, order_by=["attributes.start_time DESC"])
        return found[0] if found else None

    def _require_stage_run_id(self) -> str:
        if self.stage_run_id is None:
            raise RuntimeError("no stage is going on")
        return self.stage_run_id


def _mark_if_new(metric: Metric, logged_steps: StepsByMetric) -> bool:
    """Whether the metric has no value at this step yet; from now on it has one."""
    steps = logged_steps.setdefault(metric.key, set())
    new = metric.step not in steps
    steps.add(metric.step)
    return new


def _load_logged_steps(client: MlflowClient, run: Run) -> StepsByMetric:
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    return {key: {one.step for one in client.get_metric_history(run.info.run_id, key)} for key in keys}


def _get_or_create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # Without its kind MLflow's page takes an experiment for one of chats and hides the runs behind traces.
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=location, tags=kind))
        except MlflowException:
            # Another run may have made it in the meantime.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _user_tags() -> dict[str, str]:
    # What MLflow's own fluent functions write, so that its page shows who and what made a run.
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "harness", "mlflow.source.type": "LOCAL"}
