"""What a run leaves at its end: what its report comes to, its files, its answers as tables, and its model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tracking import artifacts, mlflow_entries, mlflow_store
from harness.tracking.background import TrackingQueue

if TYPE_CHECKING:
    from harness.report.run_report import Report
    from harness.tracking.mlflow_run import MlflowRun

RUN_FILES = ("data.json", "scores.json", "report.json", "report.html", "variants.json", "predictions/*", "plots/*.svg")
MIN_BYTES_PER_SECOND = 2e6
"""Bytes a second at which a model is expected to get to its store at least."""


class FinalUpload:
    """The last jobs of a run, of which none that fails costs the others."""

    def __init__(self, queue: TrackingQueue, folder: Path) -> None:
        self._queue, self._folder = queue, folder

    def log_report(self, report: Report, stage: int, swept_parameters: Sequence[str] = ()) -> None:
        """Differences to the base model, summaries of forgetting, the gate, and the answers as tables.

        swept_parameters: the parameters that tell the run from others of its experiment.
        """
        values = {f"{one.suite}/{one.name}/delta": one.difference.value for one in report.changes}
        for matrix in report.matrices:
            values |= {
                f"forgetting/{matrix.called}/{name}": estimate.value for name, estimate in matrix.summaries.items()
            }
        metrics = mlflow_entries.to_mlflow_metrics(values, stage)
        self._queue.submit(lambda record: record.log_metrics(metrics))
        if report.gate:
            self._queue.submit(lambda record: record.set_tag("gate", "passed" if report.passed else "failed"))
        view = mlflow_entries.table_view(
            [f"{one.suite}/{one.name}" for one in report.changes], swept_parameters or ("train.learning_rate",)
        )
        self._queue.submit_optional("view", lambda record: record.set_table_view(view))
        if report.evaluations:
            tables = artifacts.build_answer_tables(report)
            self._queue.submit_optional("tables of answers", lambda record: record.log_tables(tables))

    def upload_files(self) -> None:
        """The files of the run's folder that others read."""
        for pattern in RUN_FILES:
            folder = pattern.rpartition("/")[0] or None
            for file in sorted(self._folder.glob(pattern)):
                self._queue.submit(lambda record, file=file, folder=folder: record.log_file(file, folder))  # type: ignore[misc]

    def upload_model(self, model_format: str, registered_name: str | None) -> float:
        """The model, as `files` or in the form of `mlflow.transformers`, and its entry in the registry.

        Returns the seconds that its way to the store may take.
        """
        source = self._folder / "model"
        if model_format == "none" or not source.is_dir():
            return 0.0
        seconds = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) / MIN_BYTES_PER_SECOND

        def send(record: MlflowRun) -> None:
            with tempfile.TemporaryDirectory(prefix="harness-model-", dir=self._folder) as folder:
                place = (
                    artifacts.pack_for_mlflow(source, Path(folder) / "model")
                    if model_format == "transformers"
                    else source
                )
                with mlflow_store.request_timeout(60 + seconds):
                    for file, path in artifacts.list_model_files(place):
                        record.log_file(file, path)
            if registered_name is not None and not record.model_registered:
                version = record.register_model(registered_name, "model")
                record.set_tag("registered", f"{registered_name} {version}")

        self._queue.submit_optional("model", send)
        return 60 + 2 * seconds
