"""The command `harness answer-lengths RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness import HarnessError
from harness_example.lengths_section import answer_lengths


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run's folder."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")


def main(arguments: argparse.Namespace) -> int:
    """Print the mean number of words of the answers of each suite and stage."""
    if not (arguments.run / "predictions").is_dir():
        raise HarnessError(str(arguments.run), "has no answers", "name the folder of a run")
    for name, length in answer_lengths(arguments.run).items():
        print(f"{name}: {length:.1f}")
    return 0
