"""Send the folder of a run or an experiment to a tracking server, after the run.

The tracker of a live run records the events, which are rebuilt from the folder. MLflow gets the same, nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, RunError
from harness.evaluation import scoring
from harness.events import Event, RunFailed, RunFinished
from harness.registry import Registry
from harness.report.arm_comparison import ArmComparison
from harness.runner import arms as arms_runner
from harness.runner import evaluate_tuned, resume
from harness.runner.arm_run import arm_metadata
from harness.runner.bounded_plan import build_bounded_plan
from harness.runner.folder import RunFolder
from harness.runner.replay import StoredRun
from harness.runner.trackers import mlflow_settings
from harness.spec import arms as arms_of
from harness.spec.spec import Spec
from harness.tracking import mlflow_store
from harness.tracking.mlflow_store import MlflowPages
from harness.tracking.run_opening import RecordedTimes
from harness.tracking.tracker import ExperimentTracker, MlflowTracker
from harness.utils import redaction
from harness.utils.shell_commands import harness_command

LoadSpec = Callable[[Path], Spec]
"""Loads the spec that is stored in a run's folder."""
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Sender:
    """Sends runs to a tracking store.

    Attributes:
        registry: The components.
        load_spec: Loads the spec that is stored in a run's folder.
        uri: The tracking URI; None: where the run was tracked, else that of its spec.
        warn: Receives one line for each part of a run that cannot be sent.
    """

    registry: Registry
    load_spec: LoadSpec
    uri: str | None
    warn: Callable[[str], None]

    def send(self, folder: Path) -> MlflowPages:
        """Send a run, or an experiment with its arms, finished or interrupted.

        Args:
            folder: The folder of the run or the experiment.

        Returns:
            The addresses of the run on MLflow's page.

        Raises:
            HarnessError: The folder is that of an arm, is damaged, or is in use by another process.
            RunError: The store fails.
        """
        folder = folder.resolve()
        experiment = folder.parents[1]
        if folder.parent.name == "arms" and (experiment / "spec.json").is_file():
            hint = f"send the experiment, with all its arms: {harness_command('track', experiment)}"
            raise HarnessError(str(folder), "it is an arm of an experiment", hint)
        spec = self.load_spec(folder / "spec.json")
        with RunFolder(folder).locked():
            if spec.document["arms"] is not None:
                return self._send_experiment(spec, folder)
            return self._send_run(spec, folder)

    def _send_run(
        self, spec: Spec, folder: Path, arm: Mapping[str, Any] | None = None, parent: str | None = None
    ) -> MlflowPages:
        plan = build_bounded_plan(spec, self.registry)
        run = StoredRun(spec, plan, folder, arm)
        if run.is_trained_elsewhere:
            run = StoredRun(spec, evaluate_tuned.plan_of_tuned(plan), folder, arm)
        settings, tracking_info = self._find_store(spec, folder)
        tracker = MlflowTracker(
            settings,
            plan.name,
            self.warn,
            parent_run_id=parent,
            resume_info=tracking_info,
            recorded=_recorded_times(folder),
        )
        for event in self._iter_events(run):
            tracker.harness_on_event(event)
        return _require_sent(tracker, settings, folder)

    def _iter_events(self, run: StoredRun) -> Iterator[Event]:
        """Yield the events of a run, with the end that it had."""
        yield from run.start_events()
        if not resume.is_finished(run.folder):
            yield from run.stage_events(run.load_complete_evaluations(self.registry))
            yield RunFailed(error=INTERRUPTED, folder=str(run.folder), interrupted=True)
            return
        evaluations = run.load_evaluations(self.registry)
        yield from run.stage_events(evaluations)
        report = run.build_report(self.registry, evaluations)
        yield RunFinished(stage_index=len(run.plan.stages), report=report, seconds=report.run_info.get("seconds"))
        try:
            scoring.raise_on_violations([each for stage in evaluations for each in stage], first_stage=1)
        except RunError as error:
            yield RunFailed(error=f"{type(error).__name__}: {error}", folder=str(run.folder))

    def _send_experiment(self, spec: Spec, folder: Path) -> MlflowPages:
        all_arms = arms_of.expand_arms(spec.document["arms"], spec.where(("arms",)))
        settings, tracking_info = self._find_store(spec, folder)
        tracker = ExperimentTracker(
            settings,
            spec.document["name"],
            folder,
            self.warn,
            resume_info=tracking_info,
            recorded=_recorded_times(folder),
        )
        tracker.start(spec.document, [arm_metadata(arm) for arm in all_arms], spec.changed)
        _require_sent(tracker, settings, folder)
        arm_sender = replace(self, uri=settings["uri"])  # the arms go where the experiment goes
        unfinished: list[str] = []
        finished: list[str] = []
        for arm in all_arms:
            arm_folder = folder / "arms" / arm.name
            if not (arm_folder / "environment.json").is_file():
                continue  # not started
            (finished if resume.is_finished(arm_folder) else unfinished).append(arm.name)
            with RunFolder(arm_folder).locked():
                arm_spec = self.load_spec(arm_folder / "spec.json")
                arm_sender._send_run(arm_spec, arm_folder, arm_metadata(arm), tracker.run_id)
        if unfinished or not finished:
            reason = f"{INTERRUPTED} in {', '.join(unfinished)}" if unfinished else INTERRUPTED
            tracker.fail(KeyboardInterrupt(reason))
        else:
            tracker.finish(self._compare(spec, folder, all_arms))
        return _require_sent(tracker, settings, folder)

    def _compare(self, spec: Spec, folder: Path, all_arms: tuple[arms_of.Arm, ...]) -> ArmComparison:
        return arms_runner.compare_finished_arms(spec, all_arms, self.registry, folder, {})

    def _find_store(self, spec: Spec, folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the tracker's settings, and what `mlflow.json` has if it names the same store."""
        track, info = mlflow_settings(spec.document["track"], self.registry), RunFolder(folder).read_json("mlflow.json")
        uri = self.uri
        if uri is None:
            uri = mlflow_store.resume_uri(mlflow_store.tracking_uri(track["uri"]), info)
        if info is not None and info.get("uri") != redaction.redact_text(mlflow_store.absolute_uri(uri)):
            info = None
        # The run is over: the system metrics of now are not its own.
        return {**track, "enabled": True, "system_metrics": False, "uri": uri}, info


def _require_sent(tracker: MlflowTracker | ExperimentTracker, settings: Mapping[str, Any], folder: Path) -> MlflowPages:
    """Return the addresses on MLflow's page. Raises RunError if the store failed."""
    pages = tracker.pages
    if tracker.failure is not None or pages is None:
        where = redaction.redact_text(settings["uri"])
        what = f"the tracking store failed: {tracker.failure}"
        raise RunError(where, what, f"when it works again: {harness_command('track', folder)}")
    return pages


def _recorded_times(folder: Path) -> RecordedTimes:
    """Return when the run started and ended, by the times of its files."""
    files = [*folder.glob("*.json"), *folder.glob("stages/*/*.json*"), *folder.glob("predictions/*")]
    times = [file.stat().st_mtime for file in files if file.name != "mlflow.json"]
    return RecordedTimes((folder / "spec.json").stat().st_mtime, max(times))
