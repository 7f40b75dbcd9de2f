"""The entry points of the runner: run a spec, resume a run, run an experiment, evaluate a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError
from harness.registry import Registry
from harness.report.arm_comparison import ArmComparison
from harness.report.run_report import Report
from harness.runner import arms as arms_runner
from harness.runner import resume
from harness.runner.arm_run import plan_arms
from harness.runner.context import RunContext
from harness.runner.finish_interrupted_run import finish_interrupted_run
from harness.runner.folder import RunFolder
from harness.runner.prepare import prepare_checked_run
from harness.runner.ray_cluster import ray_cluster
from harness.runner.run_stages import run_stages
from harness.spec import arms
from harness.spec.arms import Arm
from harness.spec.spec import Spec
from harness.utils.shell_commands import harness_command, resume_command

SpecLoader = Callable[[Sequence[str]], Spec]
"""Loads the spec with additional overrides and without its arms."""


def run(spec: Spec, registry: Registry, processes: Processes = SINGLE_PROCESS) -> Report:
    """Run a spec, from its data to its report. The run's folder stays, however the run ends.

    Args:
        spec: The spec, without arms.
        registry: The components and listeners.
        processes: The processes that share the run; this is the main process. The others call `run_worker`.

    Raises:
        HarnessError: If the input is invalid; no folder is created.
        RunError: If the run fails.
    """
    prepared = prepare_checked_run(spec, registry, processes=processes)
    folder = RunFolder.create(spec.document["output"], spec.document["name"])
    with folder.locked(), _resume_note(folder, processes):
        return run_stages(RunContext(spec, registry, prepared, folder, processes=processes))


def resume_run(spec: Spec, registry: Registry, path: Path, processes: Processes = SINGLE_PROCESS) -> Report:
    """Resume an interrupted run: what is finished is read, the rest is computed.

    On CPU the result is bit-identical to an uninterrupted run. A run that was killed after its report is completed; see
    `finish_interrupted_run`. All decisions are in `resume`.

    Args:
        spec: The spec that is stored in the run's folder.
        registry: The components and listeners.
        path: The run's folder.
        processes: The processes that share the run; this is the main process.

    Raises:
        HarnessError: If the run is finished, or its inputs or number of processes changed.
        RunError: If the run fails.
    """
    folder = RunFolder(path)
    resume.require_training_run(path)
    with folder.locked(), _resume_note(folder, processes):
        if resume.is_finished(path):
            report = finish_interrupted_run(spec, registry, folder)
            if report is None:
                raise HarnessError(
                    str(path), "the run is finished", f"show its report: {harness_command('report', path)}"
                )
            return report
        resume.require_same_world_size(folder, processes.world_size)
        prepared = prepare_checked_run(spec, registry, processes=processes)
        return run_stages(RunContext(spec, registry, prepared, folder, processes=processes, resuming=True))


def run_experiment(
    spec: Spec,
    registry: Registry,
    load_spec: SpecLoader,
    *,
    arm_names: Sequence[str] = (),
    path: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
    on: str | None = None,
) -> ArmComparison:
    """Run the arms of a spec and compare all arms that have a result.

    The spec and data of every arm are checked before the first one trains. With several processes, the first arm that
    fails ends the experiment.

    Args:
        spec: The spec with its arms.
        registry: The components and listeners.
        load_spec: Loads the spec of an arm.
        arm_names: The arms to run; empty for all.
        path: The folder of an experiment to resume; None to start a new one.
        processes: The processes that share each run; this is the main process.
        on: The Ray cluster on which arms run side by side, see `ray_cluster`; None: one after the other, here.

    Raises:
        HarnessError: If an arm is invalid, in which case the error names the arm, or the cluster is not reachable.
        RunError: If an arm failed.
    """
    all_arms = arms.expand_arms(spec.document["arms"], spec.where(("arms",)))
    arm_specs = [(arm, _load_arm_spec(arm, load_spec)) for arm in arms.select_arms(all_arms, arm_names)]
    with nullcontext() if on is None else ray_cluster(on) as cluster:  # before the work that is lost without it
        if path is None:
            arm_runs = list(arms_runner.prepare_arm_runs(arm_specs, registry, processes, keep_data=cluster is None))
            folder = RunFolder.create(spec.document["output"], spec.document["name"])
            folder.write_json("spec.json", spec.document)
        else:
            folder = RunFolder(path)
            for arm in all_arms:
                resume.require_same_world_size(RunFolder(path / "arms" / arm.name), processes.world_size)
            arm_runs = plan_arms(arm_specs, registry)
        with folder.locked(), _resume_note(folder, processes):
            return arms_runner.run_arms(spec, arm_runs, registry, folder, processes=processes, cluster=cluster)


@contextmanager
def _resume_note(folder: RunFolder, processes: Processes) -> Iterator[None]:
    """Add the command that resumes the run to an interruption."""
    try:
        yield
    except KeyboardInterrupt as error:
        if resume.is_started(folder.path):
            error.add_note(f"to resume: {resume_command(folder.path, processes.world_size, len(processes.nodes))}")
        raise


def _load_arm_spec(arm: Arm, load_spec: SpecLoader) -> Spec:
    with arms.arm_error_context(arm):
        return load_spec(arm.overrides())
