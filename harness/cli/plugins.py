"""`harness plugins`: list every component and the distribution that provides it; check components; write a new one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli.options import Subparsers, add_command, add_json_argument, print_json, print_renderable
from harness.errors import HarnessError
from harness.interfaces.component import COMPONENT_TYPES
from harness.utils.formatting import printable

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
    parser.add_argument("--kind", choices=COMPONENT_TYPES)
    parser.add_argument(
        "--check", metavar="NAME", help="run the contract tests of a component, or of all components of a distribution"
    )
    parser.add_argument(
        "--new",
        nargs=2,
        metavar=("KIND", "NAME"),
        help="write a new plugin package with one component that works; KIND is metric, mitigation, mode, source, "
        "template, row_format, check, tracker, optimizer, scheduler or exporter",
    )
    parser.add_argument(
        "--folder", metavar="FOLDER", help="where --new writes; by default harness-NAME in the working directory"
    )
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the components of all installed plugins, check some of them, or write a new plugin.

    Returns:
        0; 1 if a check failed.
    """
    from harness import registry

    _refuse_unread_options(arguments)
    plugins = registry.discover_plugins()
    if arguments.new:
        return _write_new(plugins, *arguments.new, folder=arguments.folder)
    if arguments.check:
        return _check(plugins, arguments.check, as_json=arguments.json)
    kinds = [arguments.kind] if arguments.kind else list(plugins.components)
    if arguments.json:
        _print_as_json(plugins, kinds)
    else:
        _print_tables(plugins, kinds)
    return 0


def _refuse_unread_options(arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen action does not read."""
    action = "--new" if arguments.new else "--check" if arguments.check else None
    given = {"--check": arguments.check, "--kind": arguments.kind, "--json": arguments.json}
    unread = {"--new": ("--check", "--kind", "--json"), "--check": ("--kind",), None: ()}[action]
    for option in unread:
        if given[option]:
            raise HarnessError(f"harness plugins {option}", f"has no effect with {action}", "leave one of them out")
    if arguments.folder and action != "--new":
        what = "has no effect without --new"
        raise HarnessError("harness plugins --folder", what, "leave it out, or add --new KIND NAME")


def _print_as_json(plugins: Registry, kinds: Sequence[str]) -> None:
    from harness.plugin_versions import describe_plugins

    components = {
        kind: {
            name: {
                "summary": component.summary,
                "api": component.api,
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
    print_json({**components, "distributions": describe_plugins(plugins), "broken": broken})


def _print_tables(plugins: Registry, kinds: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    from harness.plugin_versions import describe_plugins

    for kind in kinds:
        table = Table(title=kind, title_justify="left", box=None, pad_edge=False, title_style="bold")
        for column in ("name", "from", "what it is"):
            table.add_column(column, style="cyan" if column == "name" else "")
        for name, component in sorted(plugins.components[kind].items()):
            table.add_row(name, plugins.origins[kind, name], Text(component.summary))
        print_renderable(table)
        print()
    for name, about in describe_plugins(plugins).items():
        if about["listens"]:
            print(f"{name} {about['version']}: receives the events of a run")
    for plugin in plugins.broken_plugins:
        print(printable(f"broken: {' '.join(str(plugin).split())}"))


def _check(plugins: Registry, name: str, *, as_json: bool) -> int:
    """Print the result of each contract check; return 1 if one failed."""
    import tempfile
    from collections import Counter
    from dataclasses import asdict
    from pathlib import Path

    from harness.testing.contract import run_checks
    from harness.utils.silence import silence_libraries

    results = []
    with tempfile.TemporaryDirectory() as folder, silence_libraries():
        for result in run_checks(plugins, name, Path(folder)):
            results.append(result)
            if not as_json:
                line = f"{result.status} {result.component_type[:-1]} {result.name}: {result.claim} {result.reason}"
                print(printable(" ".join(line.split())), flush=True)
    counts = Counter(result.status for result in results)
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        print(f"{len(results)} checks: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return 1 if counts["failed"] else 0


def _write_new(plugins: Registry, kind: str, name: str, *, folder: str | None) -> int:
    """Write a new plugin package and print how to use it."""
    from pathlib import Path

    from harness.testing.new_plugin import write_plugin

    target = write_plugin(kind, name, Path(folder) if folder else None, plugins)
    print(f"wrote {target}: the {kind} {name!r}, its tests, a README and a CI workflow")
    print(f"next: pip install -e '{target}[test]' && harness plugins --check {name} && pytest {target}")
    return 0
