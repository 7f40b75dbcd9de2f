"""The commands of plugins: `harness NAME`, declared with the hook `harness_commands`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.cli.options import DISABLE_OPTION, Subparsers
from harness.errors import ComponentError
from harness.interfaces.command import Command
from harness.interfaces.guard import describe_exception, distribution_and_version, passes_unchanged
from harness.utils.formatting import printable

PLUGIN_COMMAND = "harness_plugin_command"
"""The attribute of the parsed arguments that holds the `PluginCommand`. All others are those of the plugin."""


@dataclass(frozen=True)
class PluginCommand:
    """The command of a plugin.

    Attributes:
        name: Its name.
        run: Runs it and returns the exit code.
    """

    name: str
    run: Callable[[argparse.Namespace], int]


def add_plugin_commands(subparsers: Subparsers, argv: Sequence[str], built_in: Iterable[str]) -> None:
    """Add the parsers of the commands of plugins, unless a built-in command is called.

    Only the module of the command that is called is imported.

    Args:
        subparsers: The subparsers of the `harness` parser.
        argv: The arguments of the program.
        built_in: The names of the built-in commands, which take precedence.
    """
    name = next((argument for argument in argv if not argument.startswith("-")), None)
    names = set(built_in)
    if name in names or (name is None and "--version" in argv):
        return
    from harness.plugin_entry_points import has_third_party_plugins

    if not has_third_party_plugins():
        return
    from harness.registry import discover_plugins

    registry = discover_plugins()
    for command_name, (command, distribution) in sorted(registry.commands.items()):
        if command_name in names:
            print(
                f"warning: harness {command_name} is the built-in command, not that of {distribution}", file=sys.stderr
            )
            continue
        parser = subparsers.add_parser(command_name, help=command.summary, description=command.summary)
        if command_name == name:
            _add_command(parser, command_name, command, distribution)
    if name is not None and name not in registry.commands:
        for broken in registry.broken_plugins:
            print(
                f"harness: a plugin that may provide {name!r} failed to load: {printable(str(broken))}", file=sys.stderr
            )


def _add_command(parser: argparse.ArgumentParser, name: str, command: Command, distribution: str) -> None:
    where = f"command {name!r} of {distribution_and_version(distribution)}"
    module = _call_guarded(f"{where}, {command.module}", lambda: importlib.import_module(command.module))
    _call_guarded(f"{where}, add_arguments", lambda: module.add_arguments(parser))
    with contextlib.suppress(argparse.ArgumentError):  # an option of the plugin itself has this name
        parser.add_argument(DISABLE_OPTION, action="append", metavar="DISTRIBUTION", dest="disabled_plugins")

    def run(arguments: argparse.Namespace) -> int:
        code = _call_guarded(f"{where}, main", lambda: module.main(arguments))
        if code is not None and not isinstance(code, int):
            raise ComponentError(f"{where}, main", f"returned a {type(code).__name__}, not an exit code")
        return code or 0

    parser.set_defaults(**{PLUGIN_COMMAND: PluginCommand(name, run)})


def _call_guarded(where: str, function: Callable[[], Any]) -> Any:
    """Call a function of a plugin; an exception becomes an error that names the plugin."""
    try:
        return function()
    except Exception as error:
        if passes_unchanged(error) or isinstance(error, BrokenPipeError):
            raise
        raise ComponentError(where, describe_exception(error)) from error
