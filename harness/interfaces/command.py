"""The declaration of a command that a plugin adds to the `harness` program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A subcommand: `harness NAME`.

    Attributes:
        summary: One sentence for `harness --help`.
        module: The module of the command, "package.module". It is imported when the command is called, and has
            `add_arguments(parser)`, which adds the command's arguments to an `argparse.ArgumentParser`, and
            `main(arguments)`, which runs it and returns the exit code (None: 0).
    """

    summary: str
    module: str
