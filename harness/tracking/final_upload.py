"""What a run leaves at its end: what its report comes to, its files, its answers as tables, and its model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tracking import artifacts, mlflow_entries, mlflow_store
from harness.tracking.background import Line

if TYPE_CHECKING:
    from harness.report.run_report import Report
    from harness.tracking.mlflow_run import Record

FILES = ("data.json", "scores.json", "report.json", "report.html", "variants.json", "predictions/*", "plots/*.svg")
SLOWEST = 2e6
"""Bytes a second at which a model is expected to get to its store at least."""


class Finish:
    """The last jobs of a run, of which none that fails costs the others."""

    def __init__(self, line: Line, folder: Path) -> None:
        self._line, self._folder = line, folder

    def report(self, report: Report, stage: int, swept: Sequence[str] = ()) -> None:
        """Differences to the base model, summaries of forgetting, the gate, and the answers as tables.

        swept: the parameters that tell the run from others of its experiment.
        """
        values = {f"{one.suite}/{one.name}/delta": one.difference.value for one in report.changes}
        for matrix in report.matrices:
            values |= {
                f"forgetting/{matrix.called}/{name}": estimate.value for name, estimate in matrix.summaries.items()
            }
        metrics = mlflow_entries.metrics(values, stage)
        self._line.put(lambda record: record.metrics(metrics))
        if report.gate:
            self._line.put(lambda record: record.tag("gate", "passed" if report.passed else "failed"))
        view = mlflow_entries.view(
            [f"{one.suite}/{one.name}" for one in report.changes], swept or ("train.learning_rate",)
        )
        self._line.try_("view", lambda record: record.view(view))
        if report.evaluations:
            tables = artifacts.answer_tables(report)
            self._line.try_("tables of answers", lambda record: record.tables(tables))

    def files(self) -> None:
        """The files of the run's folder that others read."""
        for pattern in FILES:
            folder = pattern.rpartition("/")[0] or None
            for file in sorted(self._folder.glob(pattern)):
                self._line.put(lambda record, file=file, folder=folder: record.file(file, folder))  # type: ignore[misc]

    def model(self, form: str, register: str | None) -> float:
        """The model, as `files` or in the form of `mlflow.transformers`, and its entry in the registry.

        Returns the seconds that its way to the store may take.
        """
        source = self._folder / "model"
        if form == "none" or not source.is_dir():
            return 0.0
        seconds = sum(file.stat().st_size for file in source.rglob("*") if file.is_file()) / SLOWEST

        def send(record: Record) -> None:
            with tempfile.TemporaryDirectory(prefix="harness-model-", dir=self._folder) as folder:
                place = artifacts.packed(source, Path(folder) / "model") if form == "transformers" else source
                with mlflow_store.patience(60 + seconds):
                    for file, path in artifacts.model_files(place):
                        record.file(file, path)
            if register is not None and not record.registered:
                version = record.register(register, "model")
                record.tag("registered", f"{register} {version}")

        self._line.try_("model", send)
        return 60 + 2 * seconds
