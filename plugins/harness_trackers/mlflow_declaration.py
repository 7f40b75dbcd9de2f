"""The options of the tracker `mlflow`. The tracker itself is in `harness.tracking`: it also resumes and sends runs."""

from __future__ import annotations

from harness import Component, ComponentExample

COMPONENTS = {
    "mlflow": Component(
        summary="Logs to an MLflow tracking store; the default.",
        factory="harness.tracking.tracker:create_mlflow_tracker",
        example=ComponentExample(lambda folder: {"uri": (folder / "mlruns").as_uri(), "system_metrics": False}),
        options={
            "experiment": {
                "type": ["string", "null"],
                "default": None,
                "description": "MLflow experiment. null: the spec's name.",
            },
            "uri": {
                "type": ["string", "null"],
                "default": None,
                "description": "MLflow tracking URI. null: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.",
            },
            "system_metrics": {
                "type": "boolean",
                "default": True,
                "description": "Whether to log CPU, memory, disk, network and GPU use as system metrics.",
            },
            "model": {
                "enum": ["none", "files", "transformers"],
                "default": "none",
                "description": "Whether to log the trained model: not at all, its files as artifacts, or as an "
                "mlflow.transformers model, which loads it once more at the end of the run.",
            },
            "register": {
                "type": ["string", "null"],
                "minLength": 1,
                "default": None,
                "description": "Register the logged model under this name in MLflow's model registry. null: do not "
                "register.",
            },
        },
    )
}
