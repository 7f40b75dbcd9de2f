"""`harness chat`: talk to the model of a run."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from harness.cli.options import (
    Subparsers,
    add_answer_arguments,
    add_command,
    add_trust_argument,
    answer_settings,
    find_run_to_load,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "chat",
        main,
        "Talk to the trained model of a run; with --compare, to the base model too, side by side. "
        "If the input is not a terminal, each line is a message.",
        "harness chat mixed-sft-20260101-120000-ab12 --compare",
    )
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a finished run")
    parser.add_argument("--compare", action="store_true", help="let the model that the run started from answer too")
    parser.add_argument("--system", metavar="TEXT", help="the system message; in the chat: /system TEXT")
    add_answer_arguments(parser, max_new_tokens=512)
    add_trust_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Load the model and answer until the input ends."""
    run = find_run_to_load(arguments)  # before the heavy imports
    from harness.registry import discover_plugins
    from harness.runner.prepare import create_progress
    from harness.runner.trained_model import load_trained_model
    from harness.terminal.chat import Chat, Speaker
    from harness.terminal.console import Console

    registry = discover_plugins()
    with Console.from_options(quiet=True) as console:
        registry.manager.register(console, name="console")
        progress = create_progress(registry)
        trained = load_trained_model(registry, run, progress=progress)
        speakers = [Speaker("tuned", lambda: nullcontext(trained.model))]
        if arguments.compare:
            speakers.insert(0, Speaker("base", trained.base_model(progress)))
    Chat(trained, speakers, answer_settings(arguments), system=arguments.system).run()
    return 0
