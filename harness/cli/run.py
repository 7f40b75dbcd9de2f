"""`harness run`: train, evaluate before and after each stage, track."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import planned_spec
from harness.cli.options import (
    Subparsers,
    add_command,
    add_spec_arguments,
    int_at_least,
    print_renderable,
    print_warning,
)
from harness.errors import HarnessError
from harness.gate import gate_outcome

if TYPE_CHECKING:
    from harness.distributed.processes import Processes
    from harness.gate import GateResult
    from harness.registry import Registry
    from harness.report.arm_gate import ArmGate
    from harness.spec.spec import Spec


GATE_REMEDIES = (
    "to forget less, lower train.learning_rate or raise the share of mixing; to gain more, raise train.epochs; "
    "for more evidence, give the suites more rows"
)
"""What to change in a spec whose gate does not pass."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "run",
        main,
        "Train, evaluate before and after each stage, and track it.",
        "harness run specs/mixed_sft.json --set train.epochs=2",
    )
    add_spec_arguments(parser, optional=True)  # a resumed run has its own spec
    parser.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const="",
        help="resume an interrupted run or experiment; it uses its stored spec. Without RUN: list what can be resumed",
    )
    parser.add_argument(
        "--allow-plugin-change",
        action="store_true",
        help="resume although a plugin changed since the run was started; the result may differ",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME",
        dest="arms",
        help="run only this arm of the spec, or one of its seeds, e.g. ewc,seed=1",
    )
    parser.add_argument(
        "--gpus",
        type=int_at_least(1),
        default=1,
        metavar="N",
        help="share the run among N processes of this machine, one for each GPU; without GPUs, on the CPU. "
        "Several machines: use torchrun",
    )
    parser.add_argument(
        "--on",
        metavar="CLUSTER",
        help="run the arms of the spec side by side with Ray: ray for the GPUs of this machine, or without GPUs its "
        "CPU cores; ray://HOST:PORT for a cluster",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="print only warnings and errors")
    output.add_argument("--json", action="store_true", help="print the report as JSON; progress goes to stderr")


def main(arguments: argparse.Namespace) -> int:
    """Start or resume a run. Returns 3 if the gate fails, after everything is saved."""
    if arguments.resume == "":
        return _list_resumable_runs(arguments)
    if arguments.on is not None:
        _validate_cluster(arguments)
    if arguments.gpus > 1:
        from harness.distributed.local_launcher import run_processes

        _load_run(arguments)  # a wrong spec is reported before the processes start
        return run_processes(_arguments_of_a_process(arguments), arguments.gpus)
    from harness.distributed import setup

    with setup.init_processes(arguments.processes) as processes:
        if processes.is_main:
            return _run_spec(arguments, processes)
        _take_part(processes)
        return 0


def _load_run(arguments: argparse.Namespace) -> tuple[Spec, Registry, Path | None]:
    """Load and check what a new or resumed run needs.

    Returns:
        The spec, the components, and the folder of a resumed run.
    """
    run_folder = _resumed_folder(arguments)
    if arguments.allow_plugin_change and run_folder is None:
        what = "has no effect without --resume"
        raise HarnessError("--allow-plugin-change", what, "leave it out: a new run uses the installed plugins")
    if run_folder is not None:
        arguments.spec = str(run_folder / "spec.json")
    elif arguments.spec is None:
        raise HarnessError("harness run", "no spec is given", "name a spec, or resume a run: --resume RUN")
    spec, registry, _ = planned_spec.load_spec_and_plan(arguments)
    if run_folder is not None:
        _check_plugins(arguments, registry, run_folder)
    if arguments.arms and spec.document["arms"] is None:
        raise HarnessError(f"--arm {arguments.arms[0]}", "the spec has no arms", 'add arms under "arms"')
    if arguments.on is not None and spec.document["arms"] is None:
        what = "the spec has no arms, and a single run is not divided by Ray"
        raise HarnessError(f"--on {arguments.on}", what, 'leave it out, use --gpus N, or add arms under "arms"')
    planned_spec.validate_arms(arguments, spec, registry, arguments.arms)
    return spec, registry, run_folder


def _arguments_of_a_process(arguments: argparse.Namespace) -> list[str]:
    """Return the arguments of `harness` with which each process of `--gpus` is started."""
    words = ["run"]
    if arguments.resume is None:
        words.append(str(arguments.spec))
    else:
        words += ["--resume", arguments.resume]
    words += [word for override in arguments.overrides for word in ("--set", override)]
    words += [word for arm in arguments.arms for word in ("--arm", arm)]
    for name in ("allow_plugin_change", "quiet", "json"):
        if getattr(arguments, name):
            words.append(f"--{name.replace('_', '-')}")
    return words


def _validate_cluster(arguments: argparse.Namespace) -> None:
    """Raise HarnessError if arms cannot run on the cluster that `--on` names."""
    from harness.runner.ray_cluster import require_ray

    require_ray(arguments.on)
    if arguments.gpus > 1:
        what = "with --on every arm runs on one GPU"
        raise HarnessError(f"--on {arguments.on} --gpus {arguments.gpus}", what, "leave out one of the two")
    if arguments.processes > 1:
        what = f"a launcher has started {arguments.processes} processes, but Ray starts those of the arms"
        raise HarnessError(f"--on {arguments.on}", what, "start harness without a launcher")


def _check_plugins(arguments: argparse.Namespace, registry: Registry, run_folder: Path) -> None:
    """Require the plugins that a resumed run was started with, unless the user allows others."""
    from harness.runner import resume
    from harness.runner.folder import RunFolder

    if not arguments.allow_plugin_change:
        resume.require_same_plugins(RunFolder(run_folder), registry)
        return
    for change in resume.changed_plugins(RunFolder(run_folder), registry):
        print_warning(f"{change} since the run was started; the result may differ")


def _resumed_folder(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of the run that `--resume` names."""
    if arguments.resume is None:
        return None
    if arguments.spec is not None or arguments.overrides:
        raise HarnessError(
            f"--resume {arguments.resume}",
            "a resumed run uses the spec stored in its folder",
            "leave out SPEC and --set, or start a new run",
        )
    from harness.utils.find_run import find_run_anywhere
    from harness.utils.formats import require_run_format

    folder = find_run_anywhere(arguments.resume)
    require_run_format(folder)
    return folder


def _list_resumable_runs(arguments: argparse.Namespace) -> int:
    """Print the runs that can be resumed, below every known output folder. Returns 2: nothing is resumed."""
    from harness.report.run_list import list_runs
    from harness.terminal.run_list import format_runs
    from harness.utils.output_folders import known_outputs

    if arguments.spec is not None:
        raise HarnessError("--resume", "it names no run", "harness run --resume RUN, without SPEC")
    outputs = known_outputs()
    listed = [run for output in outputs for run in list_runs(output) if run.resume]
    runs = sorted(listed, key=lambda run: run.started, reverse=True)
    if not runs:
        where = ", ".join(map(str, outputs)) or "runs"
        raise HarnessError("--resume", f"no run in {where} can be resumed", "list all runs: harness runs FOLDER")
    print_renderable(format_runs(runs, ""))
    raise HarnessError("--resume", "it names no run", f"the newest: {runs[0].resume}")


def _take_part(processes: Processes) -> None:
    """Share the runs of the main process, silently. What they are, the main process sends."""
    from harness import registry
    from harness.distributed.shared_folder import require_shared_folder
    from harness.runner import stage_loop

    require_shared_folder(processes)
    stage_loop.run_worker(registry.discover_plugins(), processes)


def _run_spec(arguments: argparse.Namespace, processes: Processes) -> int:
    """Run a spec in the main process."""
    spec, registry, run_folder = _load_run(arguments)
    from harness.distributed.shared_folder import require_shared_folder
    from harness.runner import api
    from harness.terminal.console import Console

    require_shared_folder(processes, run_folder or Path(spec.document["output"]))
    with (
        Console.from_options(quiet=arguments.quiet, json=arguments.json) as console,
        processes.on_abort(lambda _: console.close()),
    ):
        registry.manager.register(console, name="console")
        if spec.document["arms"] is not None:
            load = planned_spec.arm_spec_loader(arguments, registry)
            comparison = api.run_experiment(
                spec, registry, load, arm_names=arguments.arms, path=run_folder, processes=processes, on=arguments.on
            )
            return _arms_gate_exit_code(comparison.gate)
        report = (
            api.run(spec, registry, processes)
            if run_folder is None
            else api.resume_run(spec, registry, run_folder, processes)
        )
    return print_gate_failures(report.gate)


def _arms_gate_exit_code(gate: ArmGate | None) -> int:
    """Return 3 if the gate does not pass by the judged arm."""
    if gate is None or gate.outcome == "passed":
        return 0
    print(f"harness: {gate.text}", file=sys.stderr)
    return print_gate_failures(gate.results, gate.arm) or 3


def print_gate_failures(results: Sequence[GateResult], arm: str | None = None) -> int:
    """Print each condition of a gate that did not pass, and return the exit code: 3 if the gate does not pass."""
    of_arm = "" if arm is None else f" of arm {arm!r}"
    for result in results:
        if not result.passed:
            print(f"harness: gate{of_arm}: {result.format_line()}", file=sys.stderr)
    if gate_outcome(results) == "passed":
        return 0
    print(f"harness: {GATE_REMEDIES}", file=sys.stderr)
    return 3
