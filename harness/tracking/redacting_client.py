"""The only door to a store: every name, value, text and file that is written passes here and loses its secrets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.tracking import mlflow_entries
from harness.tracking.artifacts import redacted_file
from harness.utils import redaction
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run


class UsedSource(NamedTuple):
    """A source that a run reads: its name and digest, its component with the options, and what it is used for."""

    name: str
    digest: str
    kind: str
    options: Mapping[str, Any]
    context: str


class RedactingClient:
    """Writes to an MLflow store, without secrets and within the limits of MLflow servers.

    Attributes:
        client: The client; use it directly only to read, and for states without text.
        secrets: The values that are redacted.
    """

    def __init__(self, client: MlflowClient, secrets: Secrets) -> None:
        self.client, self.secrets = client, secrets

    def clean_name(self, name: str) -> str:
        """Return a name that MLflow accepts, without secrets."""
        return redaction.mlflow_name(self.secrets.redact(name))

    def clean_metric(self, metric: Metric) -> Metric:
        """Return the metric with a clean name."""
        from mlflow.entities import Metric

        return Metric(self.clean_name(metric.key), metric.value, metric.timestamp, metric.step)

    def get_or_create_experiment(self, name: str, location: str | None) -> str:
        """Return the id of an experiment. location: where a new one stores its artifacts; None: the server decides."""
        from mlflow import MlflowException

        name = self.secrets.redact(name)
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                # Without this tag MLflow's page treats it as a GenAI experiment and shows traces instead of runs.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return str(self.client.create_experiment(name, artifact_location=location, tags=kind))
            except MlflowException:
                # Another run may have created it in the meantime.
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str], start_time: int | None = None) -> Run:
        """Create a run. start_time: milliseconds since the epoch; None: now."""
        return self.client.create_run(
            experiment_id, start_time=start_time, run_name=self.secrets.redact(name), tags=self._clean_tags(tags)
        )

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        for key, value in self._clean_tags(tags).items():
            self.client.set_tag(run_id, key, value)

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        """Set a tag of an experiment."""
        self.client.set_experiment_tag(experiment_id, key, self.secrets.redact(value))

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Log parameters in batches. Their names are clean already."""
        from mlflow.entities import Param

        entries = [Param(key, self.secrets.redact(value)) for key, value in params.items()]
        for batch in mlflow_entries.split_batches(entries, mlflow_entries.MAX_PARAMS_PER_BATCH):
            self.client.log_batch(run_id, params=batch)

    def log_metrics(self, run_id: str, metrics: Sequence[Metric]) -> None:
        """Log metrics in batches. Their names are clean already."""
        for batch in mlflow_entries.split_batches(metrics, mlflow_entries.MAX_METRICS_PER_BATCH):
            self.client.log_batch(run_id, metrics=batch)

    def log_sources(self, run_id: str, sources: Sequence[UsedSource]) -> None:
        """Log sources as data sets."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for source in sources:
            dataset = Dataset(
                name=self.secrets.redact(source.name),
                digest=source.digest.removeprefix("sha256:")[: mlflow_entries.MAX_DIGEST_CHARS],
                source_type=self.secrets.redact(source.kind),
                source=self._to_json(redaction.redact(source.options)),
            )
            inputs.append(DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", source.context)]))
        self.client.log_inputs(run_id, inputs)

    def log_json(self, run_id: str, name: str, value: Any, *, indent: int | None = 2) -> None:
        """Log a value as a JSON artifact."""
        self.client.log_text(run_id, self._to_json(value, indent) + "\n", self.secrets.redact(name))

    def log_file(self, run_id: str, file: Path, folder: str | None) -> None:
        """Log a local file as an artifact."""
        with redacted_file(file, self.secrets) as clean:
            self.client.log_artifact(run_id, str(clean), folder and self.secrets.redact(folder))

    def register_model(self, run_id: str, name: str, path: str) -> str:
        """Register files of a run as a new version of a model and return the version number."""
        from mlflow import MlflowException

        name = self.secrets.redact(name)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return str(self.client.create_model_version(name, f"runs:/{run_id}/{path}", run_id).version)

    def _clean_tags(self, tags: Mapping[str, str]) -> dict[str, str]:
        limit = mlflow_entries.MAX_TAG_CHARS
        return {self.clean_name(key): self.secrets.redact(value)[:limit] for key, value in tags.items()}

    def _to_json(self, value: Any, indent: int | None = None) -> str:
        return self.secrets.redact(json.dumps(value, indent=indent, ensure_ascii=False, default=str))
