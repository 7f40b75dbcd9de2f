"""`harness plugins`: list every component and the distribution that provides it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.options import Subparsers, add_command, add_json_argument, print_json, print_renderable

if TYPE_CHECKING:
    from harness.registry import Registry


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "plugins",
        main,
        "List every component and where it comes from.",
        "harness plugins --kind metrics",
    )
    parser.add_argument("--kind", choices=["templates", "sources", "modes", "mitigations", "metrics"])
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the components of all installed plugins."""
    from harness import registry

    plugins = registry.discover_plugins()
    kinds = [arguments.kind] if arguments.kind else list(plugins.components)
    if arguments.json:
        _print_as_json(plugins, kinds)
    else:
        _print_tables(plugins, kinds)
    return 0


def _print_as_json(plugins: Registry, kinds: Sequence[str]) -> None:
    components = {
        kind: {
            name: {
                "summary": component.summary,
                "distribution": plugins.origins[kind, name],
                "options": dict(component.options),
            }
            for name, component in sorted(plugins.components[kind].items())
        }
        for kind in kinds
    }
    broken = [
        {"distribution": plugin.distribution, "module": plugin.module, "error": plugin.error}
        for plugin in plugins.broken_plugins
    ]
    print_json({**components, "broken": broken})


def _print_tables(plugins: Registry, kinds: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    for kind in kinds:
        table = Table(title=kind, title_justify="left", box=None, pad_edge=False, title_style="bold")
        for column in ("name", "from", "what it is"):
            table.add_column(column, style="cyan" if column == "name" else "")
        for name, component in sorted(plugins.components[kind].items()):
            table.add_row(name, plugins.origins[kind, name], Text(component.summary))
        print_renderable(table)
        print()
    for plugin in plugins.broken_plugins:
        print(f"broken: {plugin}")
