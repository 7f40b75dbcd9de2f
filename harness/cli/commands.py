"""What each command does: one function of another room, imported inside the command.

Each takes the parsed arguments and gives the exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.cli import load_spec
from harness.errors import HarnessError, raise_all
from harness.utils.formatting import printable


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on; 3 when the gate was not passed, after everything is saved."""
    if arguments.resume is not None:
        return _resume(arguments)
    if arguments.spec is None:
        raise HarnessError("harness run", "no spec is named", "name one, or go on with a run: --resume RUN")
    spec, found, _ = load_spec.load_spec_and_plan(arguments)
    return _launch(arguments, spec, found, run_folder=None)


def _resume(arguments: argparse.Namespace) -> int:
    if arguments.spec is not None or arguments.overrides:
        what = "a run that is gone on with has its own spec"
        raise HarnessError(f"--resume {arguments.resume}", what, "leave SPEC and --set out, or start a new run")
    from harness.utils.find_run import find_run

    place = find_run(arguments.resume)
    arguments.spec = str(place / "spec.json")
    spec, found, _ = load_spec.load_spec_and_plan(arguments)
    return _launch(arguments, spec, found, run_folder=place)


def _launch(arguments: argparse.Namespace, spec: Any, registry: Any, run_folder: Path | None) -> int:
    arms = spec.document["arms"]
    if arguments.arms and arms is None:
        raise HarnessError(f"--arm {arguments.arms[0]}", "the spec has no arms", 'add some under "arms"')
    if arms is not None:
        load_spec.validate_arms(arguments, spec, registry, arguments.arms)
    from harness.distributed import setup

    with setup.init_processes(arguments.processes) as shared:
        return _run_spec(arguments, spec, registry, run_folder, shared)


def _run_spec(arguments: argparse.Namespace, spec: Any, registry: Any, run_folder: Path | None, processes: Any) -> int:
    """Run a spec, in the main process; the others take part in it and say nothing."""
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
            load = load_spec.arm_spec_loader(arguments, registry)
            made = api.run_experiment(
                spec, registry, load, arm_names=arguments.arms, path=run_folder, processes=processes
            )
            return _arms_gate_exit_code(spec, made)
        report = (
            api.run(spec, registry, processes)
            if run_folder is None
            else api.resume_run(spec, registry, run_folder, processes)
        )
    return _gate_exit_code(report.gate)


def _arms_gate_exit_code(spec: Any, result: Any) -> int:
    """3 when no arm passes the gate: an experiment is made to find one that does, and a naive arm need not."""
    if not spec.document["gate"]:
        return 0
    from harness.gate import evaluate_gate
    from harness.report.run_report import gate_scores_of_run

    passed = []
    for arm, folder in result.arms.items():
        try:
            passed.append(
                _gate_exit_code(evaluate_gate(spec.document["gate"], gate_scores_of_run(Path(folder))), arm) == 0
            )
        except HarnessError as error:  # an arm of another time, which did not measure what is asked now
            print(f"harness: gate of arm {arm!r}: FAILED: {error.what}; {error.hint}", file=sys.stderr)
    return 0 if any(passed) else 3


def _gate_exit_code(gate_results: Sequence[Any], arm: str | None = None) -> int:
    failed = [one for one in gate_results if not one.passed]
    of = "" if arm is None else f" of arm {arm!r}"
    for one in failed:
        print(f"harness: gate{of}: {one.format_line()}", file=sys.stderr)
    return 3 if failed else 0


def gate(arguments: argparse.Namespace) -> int:
    """Judge a finished run; 3 when it is not passed."""
    from dataclasses import asdict

    from harness.utils.find_run import find_finished_run

    place, conditions = _collect_errors(
        lambda: find_finished_run(arguments.run), lambda: _load_gate_conditions(arguments)
    )
    from harness.gate import evaluate_gate
    from harness.report.run_report import gate_scores_of_run
    from harness.utils import json_files

    judged = evaluate_gate(conditions, gate_scores_of_run(place))
    if arguments.json:
        print(json.dumps(json_files.json_safe([asdict(one) for one in judged]), indent=2, ensure_ascii=False))
    else:
        for one in judged:
            print(one.format_line())
    return 0 if all(one.passed for one in judged) else 3


def _load_gate_conditions(arguments: argparse.Namespace) -> Any:
    spec, _, _ = load_spec.load_spec_and_plan(arguments, trains=None)
    if not spec.document["gate"]:
        raise HarnessError(arguments.spec, "the spec has no gate", 'add conditions under "gate"')
    return spec.document["gate"]


def _collect_errors(*loaders: Callable[[], Any]) -> list[Any]:
    """What each gives. What is wrong with any of them is told with what is wrong with the others, in their order."""
    made, wrong = [], []
    for read in loaders:
        try:
            made.append(read())
        except HarnessError as error:
            wrong.append(error)
    raise_all(wrong)
    return made


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure a model without training it."""
    from harness.utils.find_run import find_run

    place = None if Path(arguments.spec).is_file() else find_run(arguments.spec)
    if place is not None:
        arguments.spec = str(place / "spec.json")
    spec, found, _ = load_spec.load_spec_and_plan(arguments, trains=False)
    from harness.runner import api
    from harness.terminal.console import Console

    with Console.from_options(quiet=arguments.json, json=False) as console:
        found.manager.register(console, name="console")
        folder, evaluations = api.evaluate_model(spec, found, place)
    _print_scores(evaluations, arguments.json)
    if not arguments.json:
        print(f"kept in {folder}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Make the page of a finished run or experiment again."""
    from harness.report.html import write
    from harness.utils.find_run import find_run

    place = find_run(arguments.run)
    print((write.write_experiment_page if (place / "arms.json").is_file() else write.write_run_page)(place))
    return 0


def score(arguments: argparse.Namespace) -> int:
    """Score the kept answers of a run."""
    from harness import registry
    from harness.evaluation import rescore
    from harness.utils.find_run import find_run

    found = registry.discover_plugins()
    metrics = dict(_parse_metric_option(text) for text in arguments.metrics) or None
    made = rescore.score_run(find_run(arguments.run), metrics, found, suites=arguments.suites)
    _print_scores(made, arguments.json)
    return 0


def _parse_metric_option(text: str) -> tuple[str, dict[str, Any]]:
    name, equals, options = text.partition("=")
    if not equals:
        return name, {}
    try:
        given = json.loads(options)
    except ValueError as error:
        raise HarnessError(
            f"--metric {text}", f"its options are no JSON: {error}", """e.g. 'bleu={"lang": "zh"}'"""
        ) from None
    if not isinstance(given, dict):
        raise HarnessError(f"--metric {text}", "its options are no JSON object", """e.g. 'bleu={"lang": "zh"}'""")
    return name, given


def _print_scores(evaluations: Sequence[Any], as_json: bool) -> None:
    from harness.terminal.report_table import scores_table
    from harness.utils import json_files

    if as_json:
        print(json.dumps(json_files.json_safe(json_files.scores_as_dicts(evaluations)), indent=2, ensure_ascii=False))
    else:
        _print_renderable(scores_table(evaluations))


def validate(arguments: argparse.Namespace) -> int:
    spec, found, planned = load_spec.load_spec_and_plan(arguments)
    arms = load_spec.validate_arms(arguments, spec, found)
    for text in planned.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if arguments.filled:
        print(json.dumps(spec.document, indent=2, ensure_ascii=False))
    else:
        stages = ", ".join(stage.name for stage in planned.stages)
        more = f", {len(arms)} arm(s) ({', '.join(arm.name for arm, _ in arms)})" if arms else ""
        suites = f"{len(planned.suites)} suite(s)"
        print(f"{arguments.spec} is valid: {len(planned.stages)} stage(s) ({stages}), {suites}{more}")
    return 0


def plan(arguments: argparse.Namespace) -> int:
    spec, found, _ = load_spec.load_spec_and_plan(arguments)
    load_spec.validate_arms(arguments, spec, found)
    load_spec.note_arms_ignored(spec)
    from harness.runner import plan_summary
    from harness.terminal import plan_table
    from harness.terminal.console import Console

    with Console.from_options(quiet=True, json=False) as console:
        found.manager.register(console, name="console")
        made = plan_summary.summarize_plan(spec, found)
    if arguments.json:
        print(json.dumps(made, indent=2, ensure_ascii=False))
    else:
        _print_renderable(plan_table.format_plan(made))
    return 0


def check(arguments: argparse.Namespace) -> int:
    spec, found, _ = load_spec.load_spec_and_plan(arguments)
    arms = load_spec.validate_arms(arguments, spec, found)
    load_spec.note_arms_ignored(spec)
    from harness.runner import api, data_check
    from harness.terminal.check_table import format_check
    from harness.terminal.console import Console

    with Console.from_options(quiet=arguments.json or not sys.stdout.isatty(), show_rows=True) as console:
        found.manager.register(console, name="console")
        made = data_check.run_data_checks(spec, found)
        api.check_arms(arms, found)
    if arguments.json:
        print(json.dumps(made, indent=2, ensure_ascii=False))
    else:
        _print_renderable(format_check(made))
    sys.stdout.flush()  # the table before its errors, where both go to one terminal
    for line in made["failures"]:
        print(f"harness: {printable(line)}", file=sys.stderr)
    return 0 if made["ok"] else 2


def preview(arguments: argparse.Namespace) -> int:
    spec, found, _ = load_spec.load_spec_and_plan(arguments)
    from harness.terminal import row_preview
    from harness.terminal.console import Console

    load_spec.note_arms_ignored(spec)
    plain = arguments.plain or not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
    with Console.from_options(quiet=True, json=False) as console:
        found.manager.register(console, name="console")
        shown = row_preview.preview_rows(spec, found, arguments.source, arguments.rows, plain=plain)
    for one in shown:
        _print_renderable(one)
    return 0


def plugins(arguments: argparse.Namespace) -> int:
    from harness import registry

    found = registry.discover_plugins()
    kinds = [arguments.kind] if arguments.kind else list(found.components)
    if arguments.json:
        listed = {
            kind: {
                name: {"summary": one.summary, "distribution": found.origins[kind, name], "options": dict(one.options)}
                for name, one in sorted(found.components[kind].items())
            }
            for kind in kinds
        }
        broken = [{"distribution": b.distribution, "module": b.module, "error": b.error} for b in found.broken_plugins]
        print(json.dumps({**listed, "broken": broken}, indent=2, ensure_ascii=False))
        return 0
    from rich.table import Table
    from rich.text import Text

    for kind in kinds:
        table = Table(title=kind, title_justify="left", box=None, pad_edge=False, title_style="bold")
        for column in ("name", "from", "what it is"):
            table.add_column(column, style="cyan" if column == "name" else "")
        for name, one in sorted(found.components[kind].items()):
            table.add_row(name, found.origins[kind, name], Text(one.summary))
        _print_renderable(table)
        print()
    for plugin in found.broken_plugins:
        print(f"broken: {plugin}")
    return 0


def schema(arguments: argparse.Namespace) -> int:
    from harness import registry
    from harness.spec import schema as schema_module

    text = json.dumps(schema_module.compose_schema(registry.discover_plugins()), indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        try:
            Path(arguments.output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise HarnessError(arguments.output, f"cannot be written: {error.strerror}", "name another file") from None
    else:
        print(text, end="")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    from harness.comparison import compare as compare_module
    from harness.comparison import html_page
    from harness.terminal.comparison_table import format_comparison

    made = compare_module.compare_runs(
        arguments.runs,
        arguments.experiment,
        arguments.uri,
        baseline=arguments.baseline,
        score=arguments.score,
        items=max(arguments.items, 0),
    )
    if arguments.html:
        html_page.write_comparison_html(made, Path(arguments.html))
    if arguments.json:
        print(json.dumps(made.to_json(), indent=2, ensure_ascii=False))
    else:
        _print_renderable(format_comparison(made))
    return 0


def _print_renderable(renderable: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    with console.capture() as captured:  # rich itself would end with 1 when the reader has gone
        console.print(renderable)
    sys.stdout.write(captured.get())
