"""The exporter `mlflow`: a model in MLflow's format, which `mlflow models serve` serves."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from harness import Component, ExportedModel, Exporter, ExportSource, HarnessError
from harness.utils.silence import silence_libraries
from harness_exporters.model_folder import DTYPE_OPTION, TransformersModel

COMPONENTS = {
    "mlflow": Component(
        summary="Writes a model in MLflow's format, and optionally uploads and registers it.",
        factory="harness_exporters.mlflow_model:MlflowModel",
        options={
            "uri": {
                "type": ["string", "null"],
                "default": None,
                "description": "The tracking store that the model is uploaded to, e.g. sqlite:///mlflow.db. "
                "null: it is only written.",
            },
            "experiment": {
                "type": "string",
                "minLength": 1,
                "default": "exports",
                "description": "The MLflow experiment of the upload.",
            },
            "register": {
                "type": ["string", "null"],
                "default": None,
                "description": "The name in the model registry; null: the model is not registered.",
            },
            **DTYPE_OPTION,
        },
    )
}

MODEL_FOLDER = "model"

LOADING_LINES = """```python
import mlflow

parts = mlflow.transformers.load_model("model", return_type="components")
model, tokenizer = parts["model"], parts["tokenizer"]
```

```bash
mlflow models serve -m model --env-manager local
```
"""


class MlflowModel(Exporter):
    """Writes a model in MLflow's format with the flavor `transformers`, whose interface is that of a chat."""

    def __init__(self, uri: str | None, experiment: str, register: str | None, dtype: str) -> None:
        """Create an exporter; see the options of the component.

        Raises:
            HarnessError: A model is to be registered without a store.
        """
        if register is not None and uri is None:
            raise HarnessError("export mlflow", "register needs a tracking store", "e.g. --set uri=sqlite:///mlflow.db")
        self._uri, self._experiment, self._register, self._dtype = uri, experiment, register, dtype

    def export(self, source: ExportSource, folder: Path) -> str:
        """Write the model."""
        from mlflow import transformers

        with silence_libraries():
            model = source.merge(self._dtype)
            packages = ("mlflow", "transformers", "torch", "accelerate")
            transformers.save_model(
                {"model": model, "tokenizer": source.tokenizer},
                path=str(folder / MODEL_FOLDER),
                task="llm/v1/chat" if source.chat_template else "text-generation",
                pip_requirements=[f"{name}=={_public_version(name)}" for name in packages],
            )
        source.write_card(folder, LOADING_LINES)
        return f"MLflow model in {str(model.dtype).removeprefix('torch.')}"

    def load(self, folder: Path, max_tokens: int) -> ExportedModel:
        """Load the model with MLflow."""
        from mlflow import transformers

        with silence_libraries():
            parts: Any = transformers.load_model(str(folder / MODEL_FOLDER), return_type="components")
        return TransformersModel(parts["model"], parts["tokenizer"], str(parts["model"].dtype).removeprefix("torch."))

    def publish(self, folder: Path) -> str:
        """Upload the model to the tracking store, and compare the sizes of its files there; register it.

        Raises:
            HarnessError: The store cannot be written, or a file differs.
        """
        if self._uri is None:
            return ""
        from mlflow import MlflowClient

        try:
            client = MlflowClient(self._uri, self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(self._experiment)
            run = client.create_run(experiment_id, run_name=folder.name.strip(".").partition(".draft")[0])
            client.log_artifacts(run.info.run_id, str(folder / MODEL_FOLDER), MODEL_FOLDER)
            client.set_terminated(run.info.run_id)
            stored = _artifact_sizes(client, run.info.run_id, MODEL_FOLDER)
        except Exception as error:
            text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise HarnessError(
                f"MLflow {self._uri}", f"cannot upload the model: {text}", "check the address"
            ) from error
        for file in (folder / MODEL_FOLDER).rglob("*"):
            name = str(file.relative_to(folder))
            if file.is_file() and stored.get(name) != file.stat().st_size:
                raise HarnessError(f"MLflow {self._uri}", f"{name} is incomplete there", "export again")
        text = f"uploaded to the run {run.info.run_id} of the experiment {self._experiment!r}"
        if self._register is None:
            return text
        return f"{text}, registered as {self._register} version {self._register_version(client, run.info)}"

    def _register_version(self, client: Any, run_info: Any) -> str:
        from mlflow.exceptions import MlflowException

        assert self._register is not None
        try:
            client.get_registered_model(self._register)
        except MlflowException:
            client.create_registered_model(self._register)
        source = f"{run_info.artifact_uri}/{MODEL_FOLDER}"
        return str(client.create_model_version(self._register, source, run_info.run_id).version)


def _artifact_sizes(client: Any, run_id: str, path: str) -> dict[str, int]:
    """Return the sizes of all files below a path of a run's artifacts."""
    sizes: dict[str, int] = {}
    for artifact in client.list_artifacts(run_id, path):
        if artifact.is_dir:
            sizes |= _artifact_sizes(client, run_id, artifact.path)
        else:
            sizes[artifact.path] = artifact.file_size
    return sizes


def _public_version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]
