"""Upload the results of a finished run: report metrics, files, answer tables and model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.gate import gate_outcome
from harness.tracking import artifacts, metric_names, mlflow_entries, mlflow_store, rating_upload
from harness.tracking.background import TrackingQueue

if TYPE_CHECKING:
    from harness.report.run_report import Report
    from harness.tracking.mlflow_run import MlflowRun

RUN_FILES = ("data.json", "scores.json", "report.json", "report.html", "variants.json", "predictions/*", "plots/*.svg")
MIN_BYTES_PER_SECOND = 2e6
"""Assumed minimum upload rate of a model, in bytes per second."""


class FinalUpload:
    """The last tracking jobs of a run. Each is optional: a failure does not affect the others."""

    def __init__(self, queue: TrackingQueue, folder: Path) -> None:
        self._queue, self._folder = queue, folder

    def log_report(self, report: Report, stage: int, swept_parameters: Sequence[str] = ()) -> None:
        """Log differences to the base model, forgetting summaries, the gate, and the answers as tables.

        Args:
            report: The run's report.
            stage: Index of the last stage, the step of the metrics.
            swept_parameters: Parameters in which the run differs from others of its experiment.
        """
        values = {
            metric_names.delta_name(change.suite, change.name): change.difference.value for change in report.changes
        }
        for matrix in report.matrices:
            values |= {
                metric_names.summary_name(matrix.called, name): estimate.value
                for name, estimate in matrix.summaries.items()
            }
        metrics = mlflow_entries.to_mlflow_metrics(values, stage)
        self._queue.submit(lambda mlflow_run: mlflow_run.log_metrics(metrics))
        verdict = report.verdict
        note = mlflow_entries.note(verdict.headline, [statement.text for statement in verdict.statements])
        self._queue.submit(lambda mlflow_run: mlflow_run.set_tag(mlflow_entries.NOTE_TAG, note))
        if report.gate:
            self._queue.submit(lambda mlflow_run: mlflow_run.set_tag("gate", gate_outcome(report.gate)))
        headline_scores = [change for change in report.changes if change.margin is not None] or report.changes
        view = mlflow_entries.table_view(
            [
                metric_names.score_name(change.suite, change.name)
                for change in sorted(headline_scores, key=lambda change: change.role != "general")
            ],
            swept_parameters or ("train.learning_rate",),
        )
        self._queue.submit_optional("view", lambda mlflow_run: mlflow_run.set_table_view(view))
        if report.evaluations:
            tables = artifacts.build_answer_tables(report)
            self._queue.submit_optional("tables of answers", lambda mlflow_run: mlflow_run.log_tables(tables))

    def upload_files(self) -> None:
        """Upload the result files of the run's folder."""
        for pattern in RUN_FILES:
            folder = pattern.rpartition("/")[0] or None
            for file in sorted(self._folder.glob(pattern)):
                self._queue.submit(lambda mlflow_run, file=file, folder=folder: mlflow_run.log_file(file, folder))  # type: ignore[misc]

    def log_ratings(self) -> None:
        """Log what people rated, if the run was rated before it is sent."""
        if any(self._folder.glob("ratings/*/summary.json")):
            self._queue.submit_optional(
                "ratings", lambda mlflow_run: rating_upload.log_ratings(mlflow_run, self._folder)
            )

    def upload_model(self, model_format: str, registered_name: str | None) -> float:
        """Upload the model and register it.

        Args:
            model_format: `none`, `files`, or `transformers` for an `mlflow.transformers` model.
            registered_name: Name in the model registry; None: do not register.

        Returns:
            The seconds that the upload may take.
        """
        source = self._folder / "model"
        if model_format == "none" or not source.is_dir():
            return 0.0
        seconds = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) / MIN_BYTES_PER_SECOND

        def upload(mlflow_run: MlflowRun) -> None:
            with tempfile.TemporaryDirectory(prefix="harness-model-", dir=self._folder) as folder:
                model_folder = (
                    artifacts.pack_for_mlflow(source, Path(folder) / "model")
                    if model_format == "transformers"
                    else source
                )
                with mlflow_store.request_timeout(60 + seconds):
                    for file, path in artifacts.list_model_files(model_folder):
                        mlflow_run.log_file(file, path)
            if registered_name is not None and not mlflow_run.model_registered:
                version = mlflow_run.register_model(registered_name, "model")
                mlflow_run.set_tag("registered", f"{registered_name} {version}")

        self._queue.submit_optional("model", upload)
        return 60 + 2 * seconds
