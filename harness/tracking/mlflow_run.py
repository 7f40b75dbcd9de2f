"""One run and its child runs in an MLflow store: each method is a few calls to the server.

Every method raises whatever the store raises. Threads and events are handled elsewhere.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.tracking import mlflow_entries, mlflow_store
from harness.tracking.redacting_client import RedactingClient, UsedSource
from harness.types import Plan, Stage
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

PARENT_RUN_TAG = "mlflow.parentRunId"
StepsByMetric = dict[str, set[int]]
"""Metric -> the steps at which it has been logged."""


class RunIdentity(NamedTuple):
    """What a new run is called, and where it belongs.

    Attributes:
        name: Name of the run.
        experiment: Name of its experiment, which is created if it is new.
        parent_run_id: Id of the parent run, for an arm of an experiment.
        started_at: Seconds since the epoch; None: now.
    """

    name: str
    experiment: str
    parent_run_id: str | None = None
    started_at: float | None = None


class MlflowRun:
    """A parent run and the child run of the current stage.

    Attributes:
        client: The store's client, to read.
        store: Writes to the store.
        resumed: Whether the run existed before. Parameters and metrics that it has are then not logged twice.
        run_id: Id of the parent run.
        stage_run_id: Id of the current stage's run; None between stages.
        model_registered: Whether the run's model is registered already.
    """

    def __init__(self, client: MlflowClient, run: Run, secrets: Secrets, *, resumed: bool = False) -> None:
        self.client, self.store, self.resumed = client, RedactingClient(client, secrets), resumed
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self.name = str(run.info.run_name)
        self.stage_run_id: str | None = None
        self.model_registered = resumed and "registered" in run.data.tags
        self._params = set(run.data.params) if resumed else set()
        self._points: StepsByMetric = _load_logged_steps(client, run) if resumed else {}
        self._child_points: StepsByMetric = {}
        self._stage_params: set[str] = set()
        self._system_run_id: str | None = None

    @classmethod
    def create(cls, uri: str, identity: RunIdentity, tags: Mapping[str, str], secrets: Secrets) -> MlflowRun:
        """Create a run, and its experiment if it is new.

        Args:
            uri: The tracking URI.
            identity: Name, experiment and parent.
            tags: Tags of the run.
            secrets: Values to redact.
        """
        client = mlflow_store.open_store(uri, create=True)
        store = RedactingClient(client, secrets)
        experiment_id = store.get_or_create_experiment(identity.experiment, mlflow_store.artifact_location(uri))
        parent = {PARENT_RUN_TAG: identity.parent_run_id} if identity.parent_run_id else {}
        start_time = None if identity.started_at is None else int(identity.started_at * 1000)
        run = store.create_run(experiment_id, identity.name, {**_user_tags(), **tags, **parent}, start_time)
        return cls(client, run, secrets)

    @classmethod
    def find(cls, uri: str, identity: RunIdentity, tags: Mapping[str, str], secrets: Secrets) -> str | None:
        """Return the id of the newest run with this folder name, kind and parent; None if there is none."""
        client = mlflow_store.open_store(uri, create=True)
        experiment = client.get_experiment_by_name(secrets.redact(identity.experiment))
        if experiment is None:
            return None
        wanted = {key: secrets.redact(tags[key]) for key in ("harness.id", "harness.kind")}
        if identity.parent_run_id is not None:
            wanted[PARENT_RUN_TAG] = identity.parent_run_id
        query = mlflow_entries.tag_query(wanted)
        runs = client.search_runs([experiment.experiment_id], query, order_by=["attributes.start_time DESC"])
        return str(runs[0].info.run_id) if runs else None

    @classmethod
    def reopen(
        cls, uri: str, run_id: str, tags: Mapping[str, str], secrets: Secrets, *, counted: bool = True
    ) -> MlflowRun:
        """Reopen the run of a resumed run.

        Args:
            uri: The tracking URI.
            run_id: Id of the run.
            tags: Tags of the run; they replace those that it has.
            secrets: Values to redact.
            counted: Whether the tag `harness.resumed` counts this.

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
            for tag in {"error", mlflow_entries.NOTE_TAG} & run.data.tags.keys():
                client.delete_tag(run_id, tag)
        if counted:
            tags = {**tags, "harness.resumed": str(int(run.data.tags.get("harness.resumed", "0")) + 1)}
        mlflow_run.set_tags(tags)
        return mlflow_run

    def start_stage_run(self, stage_index: int, stage: Stage) -> None:
        """Create or reopen the child run of a stage, and log the stage's settings."""
        child, is_new = self._open_child(
            f"{stage.name}/{self.name}", {"harness.kind": "stage", "stage": str(stage_index)}
        )
        self.stage_run_id = child.info.run_id
        self._child_points = {} if is_new else _load_logged_steps(self.client, child)
        # A process that was killed may have created the run without its parameters.
        self._stage_params = set(child.data.params)
        self.log_params(mlflow_entries.stage_parameters(stage), to_stage_run=True)

    def end_stage_run(self, status: str) -> None:
        """End the child run, if there is one."""
        if self.stage_run_id is not None:
            self.client.set_terminated(self.stage_run_id, status)
            self.stage_run_id = None

    def start_system_run(self) -> tuple[str, bool]:
        """Create or reopen the child run of the system metrics, and return its id and whether it is new."""
        child, is_new = self._open_child(f"system/{self.name}", {"harness.kind": "system"})
        self._system_run_id = child.info.run_id
        return child.info.run_id, is_new

    def end(self, status: str, ended_at: float | None = None) -> None:
        """End the run with `FINISHED`, `FAILED` or `KILLED`. ended_at: seconds since the epoch; None: now."""
        if self._system_run_id is None and self.resumed:
            existing = self._find_child({"harness.kind": "system"})
            self._system_run_id = None if existing is None else existing.info.run_id
        if self._system_run_id is not None:
            self.client.set_terminated(self._system_run_id, status)
        self.client.set_terminated(self.run_id, status, None if ended_at is None else int(ended_at * 1000))

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self.set_tags({key: value})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self.store.set_tags(self.run_id, tags)

    def log_params(self, flat: Mapping[str, str], *, to_stage_run: bool = False) -> None:
        """Log parameters of the run or of the current stage. Parameters that it has keep their values."""
        run_id, known = (
            (self._require_stage_run_id(), self._stage_params) if to_stage_run else (self.run_id, self._params)
        )
        named = {self.store.clean_name(key): value for key, value in flat.items()}
        self.store.log_params(run_id, {key: value for key, value in named.items() if key not in known})

    def log_metrics(self, metrics: Sequence[Metric], *, to_stage_run: bool = False) -> None:
        """Log metrics of the run or of the current stage. Values that exist for a step are kept."""
        run_id, points = (
            (self._require_stage_run_id(), self._child_points) if to_stage_run else (self.run_id, self._points)
        )
        named = map(self.store.clean_metric, metrics)
        self.store.log_metrics(run_id, [metric for metric in named if not self.resumed or _mark_if_new(metric, points)])

    def log_datasets(self, plan: Plan, digests: Mapping[str, str], stage: Stage | None = None) -> None:
        """Log the data sets of a stage, or those of the whole run with its suites, with their digests."""
        stages = plan.stages if stage is None else (stage,)
        used = [(stage_source.source, "training") for used_stage in stages for stage_source in used_stage.sources]
        held_out = [(suite.source, "evaluation") for suite in plan.suites] if stage is None else []
        sources = [
            UsedSource(source, digests.get(source, ""), *plan.sources[source], context)
            for source, context in dict.fromkeys(used + held_out)
        ]
        self.store.log_sources(self.run_id if stage is None else self._require_stage_run_id(), sources)

    def log_json(self, name: str, value: Any) -> None:
        """Log a value as a JSON artifact."""
        self.store.log_json(self.run_id, name, value)

    def log_tables(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Log tables (`columns`, `data`: rows) as artifacts that MLflow's page shows as tables."""
        for name, table in tables.items():
            self.store.log_json(self.run_id, name, table, indent=None)
        known = [{"path": name, "type": "table"} for name in tables]
        if known:
            self.set_tag("mlflow.loggedArtifacts", json.dumps(known))

    def set_table_view(self, state: str) -> None:
        """Add a shared view of the experiment's runs to MLflow's page."""
        self.store.set_experiment_tag(self.experiment_id, mlflow_entries.TABLE_VIEW_TAG, state)

    def log_file(self, file: Path, folder: str | None = None) -> None:
        """Log a local file as an artifact, with secrets redacted."""
        self.store.log_file(self.run_id, file, folder)

    def register_model(self, name: str, path: str) -> str:
        """Register files of this run as a new version of a model and return the version number."""
        return self.store.register_model(self.run_id, name, path)

    def _open_child(self, name: str, tags: Mapping[str, str]) -> tuple[Run, bool]:
        """Return the child run with these tags, and whether it is new."""
        existing = self._find_child(tags) if self.resumed else None
        if existing is not None:
            self.client.update_run(existing.info.run_id, status="RUNNING")
            return existing, False
        tags = {**_user_tags(), PARENT_RUN_TAG: self.run_id, **tags}
        return self.store.create_run(self.experiment_id, name, tags), True

    def _find_child(self, tags: Mapping[str, str]) -> Run | None:
        query = mlflow_entries.tag_query({PARENT_RUN_TAG: self.run_id, **tags})
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


def _user_tags() -> dict[str, str]:
    # The tags of MLflow's fluent functions, so that its page shows the user and the source of a run.
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": "harness", "mlflow.source.type": "LOCAL"}
