"""The command line: argv → one function of another room, imported inside the command.

`--help`, `validate`, `schema` and `plugins` import nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

from harness.cli import commands
from harness.distributed import failure, launch
from harness.errors import HarnessError
from harness.utils.formatting import printable

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 a run failed, 2 bad input, 3 a gate was not passed, 130 interrupted.

    Of several processes that share a run the main one speaks and has these exit codes; the others end with 0 after it.
    """
    return _run_command(argv) if launch.get_rank() == 0 else _worker_main(argv)


def _run_command(argv: Sequence[str] | None) -> int:
    arguments = _build_parser().parse_args(argv)
    command: Command = arguments.command
    try:
        arguments.processes = _process_count(command)
        code = command(arguments)
        sys.stdout.flush()  # here, so that a reader who has gone is noticed here
        return code
    except HarnessError as error:
        for line in error.lines():
            print(f"harness: {printable(line)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("harness: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place, why = error.filename or "harness", error.strerror or error
        print(f"harness: {place}: cannot be written or read: {why}; free space or mend its rights", file=sys.stderr)
        return 1


def _worker_main(argv: Sequence[str] | None) -> int:
    """Take part in a run beside its main process, in silence.

    Whatever is wrong before the processes know each other is wrong in the main one as well, which says it, and their
    launcher ends this one. Only where that does not happen it is said here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process is interrupted, and ends the others
    said = io.StringIO()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(said):
        try:
            code = _run_command(argv)
        except SystemExit as ended:  # of argparse
            code = int(ended.code or 0)
    if code:
        time.sleep(failure.SHUTDOWN_TIMEOUT)
        print(said.getvalue(), end="", file=sys.stderr)
    return code


def _process_count(command: Command) -> int:
    """How many processes share the command; every one but `run` is for one alone."""
    if command is commands.run:
        return launch.get_world_size()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        what = f"harness {command.__name__} works in one process, and WORLD_SIZE is {os.environ['WORLD_SIZE']}"
        raise HarnessError("torchrun", what, "start it without a launcher; only harness run shares its work")
    return 1


def _int_at_least(minimum: int) -> Callable[[str], int]:
    """What argparse reads a whole number with that may not be smaller."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if number < minimum:
            raise argparse.ArgumentTypeError(f"{number} is below {minimum}")
        return number

    return read


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Fine-tune language models from one JSON spec, and know what they forgot.",
        epilog="example: harness run specs/mixed_sft.json",
    )
    parser.add_argument("--version", action="version", version=f"harness {version('harness-sft')}")
    listed = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
        made = listed.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        made.set_defaults(command=command)
        return made

    def add_spec(
        name: str, command: Command, summary: str, example: str, *, before: str = "", many: str = ""
    ) -> argparse.ArgumentParser:
        made = add(name, command, summary, example)
        if before:
            made.add_argument(before, metavar=before.upper(), help="the folder or the name of a run")
        made.add_argument(
            "spec",
            metavar="SPEC",
            nargs="?" if name == "run" else None,  # a run that is gone on with has its own
            help=many or "the spec, a JSON file",
        )
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
        "run", commands.run, "Train, evaluate before and after each stage, and track it.",
        "harness run specs/mixed_sft.json --set train.epochs=2",
    )  # fmt: skip
    run.add_argument(
        "--resume", metavar="RUN", help="go on with a run or an experiment that was broken off; its own spec is used"
    )
    run.add_argument(
        "--arm", action="append", default=[], metavar="NAME", dest="arms", help="run this arm of the spec alone"
    )
    loud = run.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="print warnings and errors alone")
    loud.add_argument("--json", action="store_true", help="print the report as JSON, progress on the error stream")

    validate = add_spec("validate", commands.validate, "Check a spec and every name in it.", "harness validate my.json")
    validate.add_argument("--filled", action="store_true", help="print the spec with every default written in")

    outline = add_spec(
        "plan", commands.plan, "Show what would run: stages, rows, tokens, shares, steps, memory. Loads no model.",
        "harness plan specs/mixed_sft.json",
    )  # fmt: skip
    outline.add_argument("--json", action="store_true", help="print it as JSON")

    check = add_spec(
        "check", commands.check, "Prove the data of a spec: rows, masks, lengths, shares, duplicates, contamination.",
        "harness check specs/mixed_sft.json",
    )  # fmt: skip
    check.add_argument("--json", action="store_true", help="print it as JSON")

    preview = add_spec(
        "preview", commands.preview, "Show rendered rows with the trained tokens coloured.",
        "harness preview specs/mixed_sft.json --source helpdesk --rows 2",
    )  # fmt: skip
    preview.add_argument("--source", help="the source to show; every trained one if left out")
    preview.add_argument(
        "--rows", type=_int_at_least(1), default=2, metavar="N", help="rows of each source (default 2)"
    )
    preview.add_argument("--plain", action="store_true", help="mark trained text with brackets instead of colour")

    gate = add_spec(
        "gate", commands.gate, "Judge a finished run by the gate of a spec; exit code 3 when it is not passed.",
        "harness gate runs/mixed-sft-20260101-120000-ab12 specs/mixed_sft.json", before="run",
    )  # fmt: skip
    gate.add_argument("--json", action="store_true", help="print it as JSON")

    evaluate = add_spec(
        "evaluate", commands.evaluate, "Measure the model of a finished run, or a spec's base model. Trains nothing.",
        "harness evaluate specs/mixed_sft.json", many="a spec, or the folder or name of a run",
    )  # fmt: skip
    evaluate.add_argument("--json", action="store_true", help="print the scores as JSON")

    score = add(
        "score", commands.score, "Score the kept answers of a run again, with its metrics or others. Loads no model.",
        "harness score runs/mixed-sft-20260101-120000-ab12 --metric bleu",
    )  # fmt: skip
    score.add_argument("run", metavar="RUN", help="the folder or the name of a run")
    score.add_argument(
        "--metric", action="append", default=[], metavar="NAME[={…}]", dest="metrics",
        help="a metric, with its options in JSON if need be; those of the run if left out",
    )  # fmt: skip
    score.add_argument("--suite", action="append", default=[], metavar="NAME", dest="suites", help="this suite alone")
    score.add_argument("--json", action="store_true", help="print the scores as JSON")

    page = add(
        "report", commands.report, "Make the page of a finished run or experiment again: report.html.",
        "harness report runs/mixed-sft-20260101-120000-ab12",
    )  # fmt: skip
    page.add_argument("run", metavar="RUN", help="the folder or the name of a run or experiment")

    plugins = add(
        "plugins", commands.plugins, "List every component and where it comes from.", "harness plugins --kind metrics"
    )
    plugins.add_argument("--kind", choices=["templates", "sources", "modes", "mitigations", "metrics"])
    plugins.add_argument("--json", action="store_true", help="print it as JSON")

    schema = add(
        "schema",
        commands.schema,
        "Print the JSON Schema of specs.",
        "harness schema --output specs/harness.schema.json",
    )
    schema.add_argument("--output", metavar="FILE", help="write it to this file")

    compare = add(
        "compare", commands.compare, "Compare runs item by item: differences, tests, what changed, what differs.",
        "harness compare runs/first runs/second --html comparison.html",
    )  # fmt: skip
    compare.add_argument("runs", nargs="*", metavar="RUN", help="run folders, MLflow run ids or run names")
    compare.add_argument("--experiment", help="every run of this MLflow experiment")
    compare.add_argument("--uri", help="MLflow tracking URI; default $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    compare.add_argument("--baseline", metavar="RUN", help="the run that the others are compared with; else the first")
    compare.add_argument("--score", metavar="SUITE/SCORE", help="the score whose most changed items are shown")
    compare.add_argument(
        "--items", type=_int_at_least(0), default=10, metavar="N", help="how many of them (default 10; 0: none)"
    )
    compare.add_argument("--json", action="store_true", help="print it as JSON")
    compare.add_argument("--html", metavar="FILE", help="also write it as one page to this file")
    return parser
