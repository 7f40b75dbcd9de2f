"""The command line: argv → one function of another room, imported inside the command.

`--help`, `validate`, `schema` and `plugins` import nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    try:
        code = command(arguments)
        sys.stdout.flush()  # here, so that a reader who has gone is noticed here
        return code
    except HarnessError as error:
        for line in error.lines():
            print(f"harness: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("harness: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _count(text: str) -> int:
    """A number of rows, at least 1. argparse makes a ValueError a usage error."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Fine-tune language models from one JSON spec, and know what they forgot.",
        epilog="example: harness run specs/mixed_sft.json",
    )
    parser.add_argument("--version", action="version", version=f"harness {version('harness-sft')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        made.set_defaults(command=command)
        return made

    def add_spec(name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
        made = add(name, command, summary, example)
        made.add_argument("spec", metavar="SPEC", help="the spec, a JSON file")
        made.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            dest="overrides",
            help="put another value into the spec, e.g. train.learning_rate=1e-5; it is validated like the rest",
        )
        return made

    run = add_spec(
        "run", _run, "Train, evaluate before and after each stage, and track it.",
        "harness run specs/mixed_sft.json --set train.epochs=2",
    )  # fmt: skip
    loud = run.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print warnings and errors alone")
    loud.add_argument("--json", action="store_true", help="print the report as JSON, progress on the error stream")

    validate = add_spec("validate", _validate, "Check a spec and every name in it.", "harness validate my.json")
    validate.add_argument("--filled", action="store_true", help="print the spec with every default written in")

    outline = add_spec(
        "plan", _plan, "Show what would run: stages, rows, tokens, shares, steps, memory. Loads no model.",
        "harness plan specs/mixed_sft.json",
    )  # fmt: skip
    outline.add_argument("--json", action="store_true", help="print it as JSON")

    preview = add_spec(
        "preview", _preview, "Show rendered rows with the trained tokens coloured.",
        "harness preview specs/mixed_sft.json --source helpdesk --rows 2",
    )  # fmt: skip
    preview.add_argument("--source", help="the source to show; every trained one if left out")
    preview.add_argument("--rows", type=_count, default=2, metavar="N", help="rows of each source (default 2)")
    preview.add_argument("--plain", action="store_true", help="mark trained text with brackets instead of colour")

    plugins = add(
        "plugins", _plugins, "List every component and where it comes from.", "harness plugins --kind metrics"
    )
    plugins.add_argument("--kind", choices=["templates", "sources", "modes", "mitigations", "metrics"])
    plugins.add_argument("--json", action="store_true", help="print it as JSON")

    schema = add(
        "schema", _schema, "Print the JSON Schema of specs.", "harness schema --output specs/harness.schema.json"
    )
    schema.add_argument("--output", metavar="FILE", help="write it to this file")

    compare = add("compare", _compare, "Compare tracked runs.", "harness compare --experiment mixed-sft")
    compare.add_argument("runs", nargs="*", metavar="RUN", help="run ids, run names or run folders")
    compare.add_argument("--experiment", help="every run of this MLflow experiment")
    compare.add_argument("--uri", help="MLflow tracking URI; default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    compare.add_argument("--json", action="store_true", help="print it as JSON")
    return parser


def _spec(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The spec, the registry and the plan: what is wrong with a spec is said before anything heavy is imported."""
    from harness import plan, registry, schema, spec

    found = registry.discover()
    loaded = spec.load(arguments.spec, schema.compose(found), arguments.overrides, found.broken)
    return loaded, found, plan.make(loaded, found)


def _run(arguments: argparse.Namespace) -> int:
    spec, found, _ = _spec(arguments)
    from harness import run
    from harness.console import Console

    with Console.choose(quiet=arguments.quiet, json=arguments.json) as console:
        found.manager.register(console, name="console")
        run.run(spec, found)
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    spec, _, planned = _spec(arguments)
    for text in planned.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if arguments.filled:
        print(json.dumps(spec.document, indent=2, ensure_ascii=False))
    else:
        stages = ", ".join(stage.name for stage in planned.stages)
        print(f"{arguments.spec} is valid: {len(planned.stages)} stage(s) ({stages}), {len(planned.suites)} suite(s)")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    spec, found, _ = _spec(arguments)
    from harness import outline
    from harness.console import Console

    with Console.choose(quiet=True, json=False) as console:
        found.manager.register(console, name="console")
        made = outline.make(spec, found)
    if arguments.json:
        print(json.dumps(made, indent=2, ensure_ascii=False))
    else:
        _print(outline.render(made))
    return 0


def _preview(arguments: argparse.Namespace) -> int:
    spec, found, _ = _spec(arguments)
    from harness import outline
    from harness.console import Console

    plain = arguments.plain or not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
    with Console.choose(quiet=True, json=False) as console:
        found.manager.register(console, name="console")
        shown = outline.preview(spec, found, arguments.source, arguments.rows, plain=plain)
    for one in shown:
        _print(one)
    return 0


def _plugins(arguments: argparse.Namespace) -> int:
    from harness import registry

    found = registry.discover()
    kinds = [arguments.kind] if arguments.kind else list(found.components)
    if arguments.json:
        listed = {
            kind: {
                name: {"summary": one.summary, "distribution": found.origins[kind, name], "options": dict(one.options)}
                for name, one in sorted(found.components[kind].items())
            }
            for kind in kinds
        }
        broken = [{"distribution": b.distribution, "module": b.module, "error": b.error} for b in found.broken]
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
        _print(table)
        print()
    for plugin in found.broken:
        print(f"broken: {plugin}")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from harness import registry, schema

    text = json.dumps(schema.compose(registry.discover()), indent=2, ensure_ascii=False) + "\n"
    if arguments.output:
        try:
            Path(arguments.output).write_text(text, encoding="utf-8")
        except OSError as error:
            raise HarnessError(arguments.output, f"cannot be written: {error.strerror}", "name another file") from None
    else:
        print(text, end="")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from harness import compare

    made = compare.compare(arguments.runs, arguments.experiment, arguments.uri)
    if arguments.json:
        print(json.dumps(made.to_json(), indent=2, ensure_ascii=False))
    else:
        _print(compare.render(made))
    return 0


def _print(thing: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    with console.capture() as captured:  # rich itself would end with 1 when the reader has gone
        console.print(thing)
    sys.stdout.write(captured.get())


if __name__ == "__main__":
    sys.exit(main())
