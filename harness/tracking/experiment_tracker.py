"""The MLflow run of an experiment: the parent of its arms, with what their comparison comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.tracking import mlflow_entries, mlflow_store
from harness.tracking.background import FIRST_ANSWER, LAST_ANSWER, Line
from harness.utils import redaction
from harness.utils.redaction import Secrets, public

if TYPE_CHECKING:
    from harness.report.arm_comparison import Experiment
    from harness.tracking.mlflow_run import Record

FILES = ("arms.json", "report.html", "plots/*.svg")


class ExperimentTracker:
    """Writes the parent run of an experiment: `begin`, then the arms with `parent=run_id`, then `finish` or `fail`.

    settings, name, warn: as for `Tracker`. folder: of the experiment, where `mlflow.json` says where it is tracked.
    again: what that file says, when the experiment is gone on with.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        name: str,
        folder: Path,
        warn: Callable[[str], None],
        *,
        again: Mapping[str, Any] | None = None,
    ) -> None:
        self._enabled, self._again, self._folder = bool(settings["enabled"]), again, folder
        self._experiment: str = settings["experiment"] or name
        self._uri = mlflow_store.same_or_kept(mlflow_store.tracking_uri(settings["uri"]), again)
        self._line = Line(self._uri, warn)
        self._line.kept = folder

    @property
    def run_id(self) -> str | None:
        """The MLflow id of the parent run; None where there is none."""
        return None if self._line.record is None else self._line.record.run_id

    @property
    def uri(self) -> str | None:
        """The tracking URI without its password; None when tracking is off or has failed."""
        return redaction.without_secrets(self._uri) if self._enabled and not self._line.failed else None

    def begin(self, spec: Mapping[str, Any], arms: Sequence[str]) -> None:
        """Make the run, or open it again, and wait for it. spec: filled in. arms: their names. Raises nothing."""
        if not self._enabled:
            return
        self._guarded(lambda: self._begin(spec, arms))

    def finish(self, experiment: Experiment) -> None:
        """Write what the comparison comes to and the experiment's files, and end the run. Raises nothing."""
        self._guarded(lambda: self._finish(experiment))

    def fail(self, error: BaseException) -> None:
        """End the run as failed, with the files that there are. Raises nothing."""
        text = redaction.without_secrets(f"{type(error).__name__}: {error}")[: redaction.LONGEST_VALUE]
        self._guarded(lambda: self._end("FAILED", {"error": text}))

    def _begin(self, spec: Mapping[str, Any], arms: Sequence[str]) -> None:
        from harness.tracking.mlflow_run import Record

        mlflow_store.import_mlflow()
        secrets = self._line.secrets = Secrets.known(spec, self._uri)
        shown = public(spec)
        tags = mlflow_entries.run_tags(shown, {}) | {
            "harness.id": self._folder.name,
            "harness.folder": str(self._folder.absolute()),
            "harness.kind": "experiment",
        }

        def make() -> Record:
            if self._again is not None:
                try:
                    return Record.reopened(self._uri, str(self._again["run_id"]), tags, secrets)
                except LookupError as gone:
                    self._line.aside(f"MLflow has lost the experiment ({gone}): it goes on in a new run")
            record = Record.new(self._uri, self._experiment, self._folder.name, tags, secrets)
            uri = redaction.without_secrets(mlflow_store.absolute(self._uri))
            facts = {"uri": uri, "experiment": self._experiment, "run_id": record.run_id}
            (self._folder / "mlflow.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            return record

        self._line.open(make, FIRST_ANSWER)
        given = {f"arm/{number}": name for number, name in enumerate(arms, start=1)}
        self._line.put(lambda record: record.params(record.run_id, {**redaction.parameters(shown), **given}))
        self._line.put(lambda record: record.text("spec.json", shown))

    def _finish(self, experiment: Experiment) -> None:
        values = {}
        for point in experiment.points:
            values[f"arm/{point.arm}/gain"] = point.gain.value
            values[f"arm/{point.arm}/forgotten"] = point.forgotten.value
            if point.recovered is not None:
                values[f"arm/{point.arm}/recovered"] = point.recovered
        for one in experiment.intransigence:
            values[f"arm/{one.arm}/intransigence/{one.score}"] = one.value.value
        metrics = mlflow_entries.metrics(values, 0)
        self._line.put(lambda record: record.metrics(metrics))
        tags = {"baseline": experiment.baseline, "gain": experiment.gain, "forgetting": experiment.forgetting}
        missing = {"missing": ", ".join(experiment.missing)} if experiment.missing else {}
        self._end("FINISHED", {**tags, **missing, "advice": experiment.advice})

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        self._line.put(lambda record: record.tags(tags))
        for pattern in FILES:
            folder = pattern.rpartition("/")[0] or None
            for file in sorted(self._folder.glob(pattern)):
                self._line.put(lambda record, file=file, folder=folder: record.file(file, folder))  # type: ignore[misc]
        self._line.put(lambda record: record.end(status))
        self._line.wait(LAST_ANSWER)

    def _guarded(self, job: Callable[[], None]) -> None:
        if self._line.failed:
            return
        try:
            job()
        except Exception as error:
            self._line.fail(error)
        self._line.look()
