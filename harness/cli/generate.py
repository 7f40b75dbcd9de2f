"""`harness generate`: answer every prompt of a file with the model of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.options import (
    Subparsers,
    add_answer_arguments,
    add_command,
    add_trust_argument,
    answer_settings,
    find_run_to_load,
    int_at_least,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "generate",
        main,
        "Answer every prompt of a file with the trained model of a run, as JSON Lines. "
        "The same command continues an interrupted file.",
        "harness generate mixed-sft-20260101-120000-ab12 prompts.csv --output answers.jsonl",
    )
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a finished run")
    parser.add_argument("file", metavar="FILE", type=Path, help="JSON Lines, JSON or CSV with a prompt in each row")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the answers to write; default: RUN/generated/FILE.answers.jsonl"
    )
    parser.add_argument("--column", metavar="NAME", help="the column of the prompt or of the messages")
    parser.add_argument("--base", action="store_true", help="let the model that the run started from answer")
    parser.add_argument(
        "--batch-size", type=int_at_least(1), default=8, metavar="N", help="answers at once (default: %(default)s)"
    )
    add_answer_arguments(parser, max_new_tokens=256)
    add_trust_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Write the answers and print where."""
    run = find_run_to_load(arguments)  # before the heavy imports
    from harness.registry import discover_plugins
    from harness.runner.answer_file import PromptFile, answer_file
    from harness.terminal.console import Console

    model = "base" if arguments.base else "answers"
    output = arguments.output or run / "generated" / f"{arguments.file.stem}.{model}.jsonl"
    registry = discover_plugins()
    with Console.from_options() as console:
        registry.manager.register(console, name="console")
        answered = answer_file(
            registry,
            run,
            PromptFile(arguments.file, arguments.column),
            output,
            answer_settings(arguments),
            batch_size=arguments.batch_size,
            base=arguments.base,
        )
    parts = [f"{answered.rows} answers"]
    if answered.resumed:
        parts.append(f"{answered.resumed} of them were there already")
    if answered.cut:
        parts.append(f"{answered.cut} ended at {arguments.max_new_tokens} tokens: raise --max-new-tokens")
    print(f"{answered.file}: {', '.join(parts)}")
    return 0
