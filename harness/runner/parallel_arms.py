"""Run the arms of an experiment side by side: each in a process of its own, on a cluster that assigns its devices.

The main process prepares the arms, submits those that need not wait, and emits when an arm starts and ends. An arm that
has first stages in common with an earlier one waits until that one has ended, so that each stage is trained once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from harness.errors import RunError
from harness.events import ArmStarted, ProgressUpdated, RunFailed, WarningRaised
from harness.runner import resume
from harness.runner.arm_run import ArmContext, ArmRun, emit_arm_end, run_arm
from harness.runner.arm_task import LOG_FILE, ArmOutcome, ArmTask
from harness.runner.shared_stages import SharedStages, find_shared_stages
from harness.utils import stop_signals

POLL_SECONDS = 0.5
"""How long the main process waits for arms before it looks for a signal and for arms that have started."""

GRACE_SECONDS = 120.0
"""How long arms that are interrupted may run on: each finishes its step and saves a checkpoint."""

ENVIRONMENT_PREFIXES = (
    *("HARNESS_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "MLFLOW_", "WANDB_", "AWS_", "OMP_", "PYTORCH_", "CUBLAS_"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("XDG_CACHE_HOME", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
"""Environment variables that begin so are the same in the process of an arm as in the main process."""

Handle = Any
"""What a cluster returns for a task that it has received."""


class Cluster(Protocol):
    """Machines that run tasks, each in a process of its own."""

    def submit(self, task: ArmTask) -> Handle:
        """Queue a task. The cluster starts it when a device is free."""

    def wait(self, handles: Sequence[Handle], seconds: float) -> Sequence[Handle]:
        """Return the tasks that have ended, at least one unless the time is over."""

    def outcome(self, handle: Handle) -> ArmOutcome:
        """Return how a task ended; if its process died, the outcome says so."""

    def interrupt(self, handles: Sequence[Handle], *, at_once: bool = False) -> None:
        """Discard tasks that wait, and interrupt the others with SIGINT; `at_once` kills their processes."""


@dataclass
class _SubmittedArm:
    """An arm that the cluster has.

    Attributes:
        name: Name of the arm.
        log_size: Size of its log when it was submitted, in bytes: the log grows when its process starts.
        has_started: Whether `ArmStarted` was emitted.
    """

    name: str
    log_size: int
    has_started: bool = False


def run_side_by_side(context: ArmContext, arm_runs: Sequence[ArmRun], cluster: Cluster) -> dict[str, str]:
    """Run every arm on a cluster. An arm that fails does not stop the others.

    Args:
        context: What all arms need.
        arm_runs: The arms to run.
        cluster: Where they run.

    Returns:
        Arm -> why it failed.

    Raises:
        Interrupted: A signal stopped the experiment; its arms have ended, or `GRACE_SECONDS` are over.
    """
    schedule = _Schedule(context, arm_runs, cluster)
    try:
        schedule.end_finished_arms()
        while not schedule.is_over:
            schedule.submit_ready_arms()
            schedule.wait_for_arms()
            stop_signals.raise_if_requested()
    except BaseException:
        stop_signals.clear()
        with suppress(RunError):  # the connection to the cluster may be lost: the first error is reported
            schedule.interrupt()
        raise
    return {name: schedule.failures[name] for name in schedule.arm_runs if name in schedule.failures}


class _Schedule:
    """Which arms wait, run and have ended.

    Attributes:
        arm_runs: Name -> arm.
        failures: Arm -> why it failed.
    """

    def __init__(self, context: ArmContext, arm_runs: Sequence[ArmRun], cluster: Cluster) -> None:
        self.arm_runs = {arm_run.arm.name: arm_run for arm_run in arm_runs}
        self.failures: dict[str, str] = {}
        self._context, self._cluster = context, cluster
        plans = {name: arm_run.plan for name, arm_run in self.arm_runs.items()}
        self._shared = {name: find_shared_stages(plans, name, context.registry) for name in plans}
        self._numbers = {name: number for number, name in enumerate(plans, start=1)}
        self._waiting = list(plans)
        self._submitted: dict[Handle, _SubmittedArm] = {}
        self._ended: set[str] = set()
        self._progress: ProgressUpdated | None = None

    @property
    def is_over(self) -> bool:
        """Whether every arm has ended."""
        return not self._waiting and not self._submitted

    def end_finished_arms(self) -> None:
        """Complete the arms that have a result already, here: they need no device."""
        for name in list(self._waiting):
            if resume.is_finished(self._context.folder / name):
                self._waiting.remove(name)
                self._emit_start(name)
                self._end(name, run_arm(self._context, self.arm_runs[name], SharedStages()))

    def submit_ready_arms(self) -> None:
        """Submit the arms that do not wait for another one."""
        for name in list(self._waiting):
            donor = self._shared[name].donor
            if donor is None or donor in self._ended:
                self._waiting.remove(name)
                submitted = _SubmittedArm(name, self._log_size(name))
                self._submitted[self._cluster.submit(self._build_task(name))] = submitted

    def wait_for_arms(self) -> None:
        """Wait for a moment, and emit which arms have started and ended."""
        handles = self._cluster.wait(list(self._submitted), POLL_SECONDS)
        for arm in self._submitted.values():
            if not arm.has_started and self._log_size(arm.name) > arm.log_size:
                arm.has_started = True
                self._emit_start(arm.name)
        for handle in handles:
            arm = self._submitted.pop(handle)
            if not arm.has_started:
                self._emit_start(arm.name)
            outcome = self._cluster.outcome(handle)
            if outcome.error:  # the run's own event is emitted in its process, which may be dead
                folder = str(self._context.folder / arm.name)
                self._context.registry.emit(RunFailed(error=outcome.error, folder=folder))
            self._end(arm.name, outcome)
        self._emit_progress()

    def interrupt(self) -> None:
        """Interrupt all arms, and wait until they have ended. A second signal ends the wait."""
        handles = list(self._submitted)
        running = sum(arm.has_started for arm in self._submitted.values())
        if running:
            text = f"stopping {running} arm(s) after their current step, with a checkpoint; Ctrl-C again stops at once"
            self._context.registry.emit(WarningRaised(text=text))
        try:
            self._cluster.interrupt(handles)
            deadline = time.monotonic() + GRACE_SECONDS
            while handles and time.monotonic() < deadline:
                ended = self._cluster.wait(handles, POLL_SECONDS)
                handles = [handle for handle in handles if handle not in ended]
                for handle in ended:
                    self._emit_failure_of_stop(self._submitted[handle].name, self._cluster.outcome(handle))
        finally:  # also after a second signal
            if handles:
                names = ", ".join(self._submitted[handle].name for handle in handles)
                self._context.registry.emit(WarningRaised(text=f"killed without another checkpoint: {names}"))
                self._cluster.interrupt(handles, at_once=True)

    def _emit_failure_of_stop(self, name: str, outcome: ArmOutcome) -> None:
        """Emit why an arm could not stop as it should, e.g. because its checkpoint could not be written."""
        if outcome.failure is not None and not outcome.is_interrupted:
            self._context.registry.emit(WarningRaised(text=f"the arm {name!r} failed: {outcome.error}"))

    def _end(self, name: str, outcome: ArmOutcome) -> None:
        emit_arm_end(self._context.registry, name, outcome)
        self._ended.add(name)
        if outcome.failure is not None:
            self.failures[name] = outcome.failure

    def _emit_start(self, name: str) -> None:
        self._context.registry.emit(ArmStarted(arm=name, number=self._numbers[name], of=len(self._numbers)))

    def _emit_progress(self) -> None:
        """Emit which arms run, if that has changed since an arm started or ended."""
        running = ", ".join(arm.name for arm in self._submitted.values() if arm.has_started)
        event = ProgressUpdated(
            phase="run arms", done=len(self._ended), total=len(self.arm_runs), note=running, unit="arms"
        )
        if event != self._progress and (running or self._ended):
            self._progress = event
            self._context.registry.emit(event)

    def _build_task(self, name: str) -> ArmTask:
        shared = self._shared[name]
        return ArmTask(
            working_directory=os.getcwd(),
            experiment=str(self._context.folder.parent),
            arm=name,
            # The snapshots of an arm that runs are incomplete.
            earlier={name: count for name, count in shared.earlier.items() if name in self._ended},
            stages_to_keep=shared.to_keep,
            parent=self._context.parent,
            tracked=self._context.tracked,
            is_prepared=self.arm_runs[name].is_checked,
            environment=shared_environment(self.arm_runs[name].spec.document),
        )

    def _log_size(self, name: str) -> int:
        try:
            return (self._context.folder / name / LOG_FILE).stat().st_size
        except OSError:
            return 0


def shared_environment(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables that the process of an arm gets from this process.

    Args:
        document: The spec of the arm; the variables that its `key_env` name are among them.
    """
    named = set(_values_of_key(document, "key_env"))
    return {name: value for name, value in os.environ.items() if name in named or name.startswith(ENVIRONMENT_PREFIXES)}


def _values_of_key(value: Any, key: str) -> Iterator[Any]:
    """Yield the values of a key, however deep it is in a document."""
    if isinstance(value, Mapping):
        if isinstance(value.get(key), str):
            yield value[key]
        for element in value.values():
            yield from _values_of_key(element, key)
    elif isinstance(value, list):
        for element in value:
            yield from _values_of_key(element, key)
