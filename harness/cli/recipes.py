"""`harness recipes`: list the recipes of `harness init`."""

from __future__ import annotations

import argparse

from harness.cli.options import Subparsers, add_command, add_json_argument, print_json


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "recipes",
        main,
        "List the recipes for common tasks: harness init FILE --recipe NAME.",
        "harness recipes",
    )
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print name and summary of each recipe."""
    from harness.drafting.recipes import RECIPES

    if arguments.json:
        print_json({name: recipe.summary for name, recipe in RECIPES.items()})
        return 0
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        needs = f" Needs {recipe.min_files} files." if recipe.min_files > 1 else ""
        print(f"{name:<{width}}  {recipe.summary}{needs}")
    return 0
