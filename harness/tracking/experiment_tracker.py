"""The MLflow run of an experiment: the parent of the runs of its arms, with the results of their comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.tracking import metric_names, mlflow_entries, mlflow_store
from harness.tracking.background import END_TIMEOUT
from harness.tracking.run_opening import RecordedTimes
from harness.tracking.tracked_run import TrackedRun
from harness.utils import redaction
from harness.utils.redaction import Secrets, redact

if TYPE_CHECKING:
    from harness.report.arm_comparison import ArmComparison
    from harness.tracking.mlflow_run import MlflowRun

EXPERIMENT_FILES = ("arms.json", "report.html", "plots/*.svg")


class ExperimentTracker(TrackedRun):
    """Writes the parent run of an experiment.

    Call `start`, run the arms with `parent_run_id=run_id`, then call `finish` or `fail`. Nothing raises.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        name: str,
        folder: Path,
        warn: Callable[[str], None],
        *,
        resume_info: Mapping[str, Any] | None = None,
        recorded: RecordedTimes | None = None,
    ) -> None:
        """Create a tracker; the MLflow run is created by `start`.

        Args:
            settings: As for `MlflowTracker`.
            name: Name of the experiment.
            folder: The folder of the experiment; `mlflow.json` in it names the MLflow run.
            warn: Receives one line that states what failed.
            resume_info: Content of `mlflow.json` of a resumed experiment; its MLflow run is reopened.
            recorded: The times of an experiment that is sent later.
        """
        super().__init__(settings, name, warn, resume_info=resume_info, recorded=recorded)
        self._folder = folder
        self._queue.set_folder(folder)
        self._swept_params: tuple[str, ...] = ()

    def start(
        self, spec: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], changed: Mapping[str, Any] | None = None
    ) -> None:
        """Create or reopen the MLflow run, and wait for it.

        Args:
            spec: The spec with every default filled in.
            arms: `name`, `method` and `changes` of every run of the experiment.
            changed: The values of the spec that differ from the defaults; None: not known.
        """
        self._run_guarded(lambda: self._start(spec, arms, changed))

    def finish(self, experiment: ArmComparison) -> None:
        """Write the results of the comparison and the experiment's files, and end the MLflow run."""
        self._run_guarded(lambda: self._finish(experiment))

    def fail(self, error: BaseException) -> None:
        """End the MLflow run as failed, or killed if it was interrupted, with the files that exist."""
        is_killed = isinstance(error, KeyboardInterrupt)
        text = str(error) or "interrupted" if is_killed else f"{type(error).__name__}: {error}"
        text = redaction.redact_text(text)[: redaction.MAX_VALUE_LENGTH]
        status, note = ("KILLED", text) if is_killed else ("FAILED", f"Failed: {text}")
        self._run_guarded(lambda: self._end(status, {"error": text, mlflow_entries.NOTE_TAG: note}))

    def _start(
        self, spec: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], changed: Mapping[str, Any] | None
    ) -> None:
        from harness.tracking.mlflow_run import RunIdentity

        mlflow_store.import_mlflow()
        secrets = Secrets.collect(spec, *(arm["changes"] for arm in arms), self._uri)
        redacted_spec = redact(spec)
        tags = mlflow_entries.build_run_tags(redacted_spec, {}) | {
            "harness.id": self._folder.name,
            "harness.folder": str(self._folder.absolute()),
            "harness.kind": "experiment",
        }

        started_at = None if self._recorded is None else self._recorded.started_at
        name = mlflow_entries.run_name(self._folder.name)
        identity = RunIdentity(name, self._experiment or name, None, started_at)

        methods = dict.fromkeys(str(arm.get("method", arm["name"])) for arm in arms)
        arm_params = {f"arm/{number}": name for number, name in enumerate(methods, start=1)}
        self._swept_params = tuple(
            dict.fromkeys(name for arm in arms for name in mlflow_entries.arm_tags_and_params(arm)[1])
        )
        params = mlflow_entries.build_run_params(redacted_spec, changed) | arm_params
        self._open_run(identity, tags, secrets)
        self._queue.submit(lambda mlflow_run: mlflow_run.log_params(params))
        self._queue.submit(lambda mlflow_run: mlflow_run.log_json("spec.json", redacted_spec))

    def _finish(self, experiment: ArmComparison) -> None:
        values = {}
        for point in experiment.points:
            values[f"arm/{point.arm}/gain"] = point.gain.value
            values[f"arm/{point.arm}/forgotten"] = point.forgotten.value
            for quantity, spread in (("gain", point.gain_spread), ("forgotten", point.forgotten_spread)):
                if spread is not None:
                    values[f"arm/{point.arm}/{quantity}/sd"] = spread.sd
            if point.recovered is not None:
                values[f"arm/{point.arm}/recovered"] = point.recovered
        if experiment.equal_gain is not None:
            for at_gain in experiment.equal_gain.points:
                values[f"arm/{at_gain.arm}/forgotten_at_equal_gain"] = at_gain.forgotten.value
        for score in experiment.intransigence:
            values[f"arm/{score.arm}/intransigence/{score.score}"] = score.value.value
        recommended = sorted(
            (score for score in experiment.scores if score.arm == experiment.advised.arm),
            key=lambda score: score.role != "general",
        )
        for arm_score in recommended:
            values[metric_names.score_name(arm_score.suite, arm_score.score)] = arm_score.after.value
            values[metric_names.delta_name(arm_score.suite, arm_score.score)] = arm_score.change.value
        metrics = mlflow_entries.to_mlflow_metrics(values, 0)
        self._queue.submit(lambda mlflow_run: mlflow_run.log_metrics(metrics))
        tags = {"baseline": experiment.baseline, "gain": experiment.gain, "forgetting": experiment.forgetting}
        if experiment.gate is not None:
            tags["gate"] = experiment.gate.outcome
        if experiment.advised.arm is not None:
            tags["recommended"] = experiment.advised.arm
        # The headline scores of an experiment are its two axes, the forgetting first.
        headline = [name for name in (experiment.forgetting, experiment.gain) if "/" in name]
        view = mlflow_entries.table_view(headline, self._swept_params or ("train.learning_rate",))
        self._queue.submit_optional("view", lambda mlflow_run: mlflow_run.set_table_view(view))
        missing = {"missing": ", ".join(experiment.missing)} if experiment.missing else {}
        advice = experiment.recommendation_text
        note = mlflow_entries.note(f"{advice[:1].upper()}{advice[1:]}.", experiment.notes)
        self._end("FINISHED", {**tags, **missing, "advice": advice, mlflow_entries.NOTE_TAG: note})

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        self._queue.submit(lambda mlflow_run: mlflow_run.set_tags(tags))
        for pattern in EXPERIMENT_FILES:
            artifact_folder = pattern.rpartition("/")[0] or None
            for file in sorted(self._folder.glob(pattern)):
                self._queue.submit(partial(_log_file, file=file, artifact_folder=artifact_folder))
        self._queue.submit(
            lambda mlflow_run: mlflow_run.end(status, None if self._recorded is None else self._recorded.ended_at)
        )
        self._queue.wait(END_TIMEOUT)


def _log_file(mlflow_run: MlflowRun, *, file: Path, artifact_folder: str | None) -> None:
    mlflow_run.log_file(file, artifact_folder)
