"""`harness run`: train, evaluate before and after each stage, track."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import planned_spec
from harness.cli.options import Subparsers, add_command, add_spec_arguments
from harness.errors import HarnessError
from harness.gate import gate_outcome

if TYPE_CHECKING:
    from harness.distributed.processes import Processes
    from harness.gate import GateResult
    from harness.registry import Registry
    from harness.report.arm_gate import ArmGate
    from harness.spec.spec import Spec


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
        "--resume", metavar="RUN", help="resume an interrupted run or experiment; it uses its stored spec"
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME",
        dest="arms",
        help="run only this arm of the spec, or one of its seeds, e.g. ewc,seed=1",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="print only warnings and errors")
    output.add_argument("--json", action="store_true", help="print the report as JSON; progress goes to stderr")


def main(arguments: argparse.Namespace) -> int:
    """Start or resume a run. Returns 3 if the gate fails, after everything is saved."""
    run_folder = _resumed_folder(arguments)
    if run_folder is not None:
        arguments.spec = str(run_folder / "spec.json")
    elif arguments.spec is None:
        raise HarnessError("harness run", "no spec is given", "name a spec, or resume a run: --resume RUN")
    spec, registry, _ = planned_spec.load_spec_and_plan(arguments)
    if arguments.arms and spec.document["arms"] is None:
        raise HarnessError(f"--arm {arguments.arms[0]}", "the spec has no arms", 'add arms under "arms"')
    planned_spec.validate_arms(arguments, spec, registry, arguments.arms)
    from harness.distributed import setup

    with setup.init_processes(arguments.processes) as processes:
        return _run_spec(arguments, spec, registry, run_folder, processes)


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
    from harness.utils.find_run import find_run

    return find_run(arguments.resume)


def _run_spec(
    arguments: argparse.Namespace, spec: Spec, registry: Registry, run_folder: Path | None, processes: Processes
) -> int:
    """Run a spec in the main process; worker processes take part silently."""
    from harness.runner import api, stage_loop
    from harness.terminal.console import Console

    if not processes.is_main:
        stage_loop.run_worker(registry, processes)
        return 0
    with (
        Console.from_options(quiet=arguments.quiet, json=arguments.json) as console,
        processes.on_abort(lambda _: console.close()),
    ):
        registry.manager.register(console, name="console")
        if spec.document["arms"] is not None:
            load = planned_spec.arm_spec_loader(arguments, registry)
            comparison = api.run_experiment(
                spec, registry, load, arm_names=arguments.arms, path=run_folder, processes=processes
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
    return 0 if gate_outcome(results) == "passed" else 3
