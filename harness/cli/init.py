"""`harness init`: draft a spec for data files, and check it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cli import check
from harness.cli.options import Subparsers, add_command
from harness.errors import HarnessError
from harness.utils.formatting import printable

if TYPE_CHECKING:
    from harness.drafting.draft_spec import Draft
    from harness.drafting.recipes import Recipe
    from harness.registry import Registry


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "init",
        main,
        "Draft a spec for your own files: columns, model, split, suites and gate, each choice explained.",
        "harness init tickets.csv --goal try",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="JSON Lines, JSON, CSV, Parquet or text")
    parser.add_argument(
        "--goal",
        choices=("try", "ship", "compare"),
        default=None,
        help="try: minutes, to see that everything works; ship: the model to serve, with a gate; compare: arms that "
        "show what prevents forgetting (default: try)",
    )
    parser.add_argument("--recipe", metavar="NAME", help="a recipe for a common task: harness recipes lists them")
    parser.add_argument("--model", metavar="MODEL", help="model.path: a hub id, a folder or a GGUF file")
    parser.add_argument("--general", metavar="FILE", type=Path, help="general conversations, to keep and to measure")
    parser.add_argument("--prompt", metavar="COLUMN", help="the column of the prompt")
    parser.add_argument("--response", metavar="COLUMN", help="the column of the response")
    parser.add_argument("--output", metavar="SPEC", type=Path, default=Path("spec.json"), help="default: spec.json")
    parser.add_argument("--no-check", action="store_false", dest="check", help="write the spec without checking it")


def main(arguments: argparse.Namespace) -> int:
    """Write the spec, explain it, check it, and print the next command."""
    from harness.drafting.device_facts import find_device
    from harness.drafting.draft_spec import DraftRequest, draft_spec
    from harness.drafting.file_facts import inspect_file
    from harness.registry import discover_plugins

    recipe = _find_recipe(arguments)
    if arguments.output.exists():
        raise HarnessError(str(arguments.output), "the file exists", "name another one: --output SPEC")
    registry = discover_plugins()
    columns = _named_columns(arguments)
    files = [inspect_file(registry, path, columns) for path in arguments.files]
    general = None if arguments.general is None else inspect_file(registry, arguments.general)
    preset = find_preset(registry, "zh" if any(facts.language == "zh" for facts in files) else "en")
    goal = arguments.goal or (recipe.goal if recipe else "try")
    request = DraftRequest(goal, arguments.model, general, preset, arguments.output.parent)
    draft = draft_spec(files, find_device(), request)
    if recipe is not None:
        apply_recipe(draft, arguments.recipe, recipe, registry, keep_model=arguments.model is not None)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(draft.document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    width = max(len(key) for key, _ in draft.reasons)
    for key, text in draft.reasons:
        print(f"{key:<{width}}  {text}")
    spec = shlex.quote(str(arguments.output))
    print(f"\nwrote {spec}")
    if arguments.check:
        code = _check(arguments.output)
        if code:
            print(f"\nchange {spec}, then: harness check {spec}")
            return code
    print(f"\nnext: harness run {spec}")
    return 0


def _find_recipe(arguments: argparse.Namespace) -> Recipe | None:
    """Return the recipe that the user names, if there is one, after checking what it needs."""
    if arguments.recipe is None:
        return None
    from harness.drafting.recipes import RECIPES

    where = f"--recipe {arguments.recipe}"
    recipe = RECIPES.get(arguments.recipe)
    if recipe is None:
        near = get_close_matches(arguments.recipe, RECIPES, 1)
        hint = f"did you mean {near[0]!r}?" if near else "harness recipes lists them"
        raise HarnessError(where, "there is no such recipe", hint)
    if len(arguments.files) < recipe.min_files:
        raise HarnessError(where, f"needs {recipe.min_files} files or more", "name them in the order of training")
    return recipe


def apply_recipe(draft: Draft, name: str, recipe: Recipe, registry: Registry, *, keep_model: bool = False) -> None:
    """Merge a recipe into a drafted spec, and drop the reasons of what it changes.

    Args:
        draft: The draft to change.
        name: The name of the recipe.
        recipe: The recipe.
        registry: The components.
        keep_model: Whether the draft has the model that the user named, which a recipe does not replace.
    """
    from harness.drafting.recipes import fill_placeholders
    from harness.spec.layers import merge_values
    from harness.spec.schema import compose_schema, expand_shorthand

    schema = compose_schema(registry)
    domains = [source for source in draft.document["sources"] if source != "general"]
    spec = dict(recipe.spec)
    if keep_model:
        spec.pop("model", None)
        if draft.document["template"] != "tokenizer":
            spec.pop("template", None)  # the model has no chat template of its own
    is_preset = "preset" in draft.document["evaluate"].get("general", {})
    changes = fill_placeholders(spec, domains, "general-everyday" if is_preset else "general")
    document, changes = (expand_shorthand(value, schema, schema) for value in (draft.document, changes))
    draft.document = merge_values(document, changes, schema, schema)
    draft.reasons = [
        (key, text) for key, text in draft.reasons if _value_at(document, key) == _value_at(draft.document, key)
    ]
    changed = ", ".join(spec) or "nothing"
    draft.explain("recipe", f"{name} changes {changed}: {recipe.summary}")


def _value_at(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def _named_columns(arguments: argparse.Namespace) -> dict[str, str] | None:
    if arguments.prompt is None and arguments.response is None:
        return None
    if arguments.prompt is None or arguments.response is None:
        missing = "--prompt" if arguments.prompt is None else "--response"
        raise HarnessError(missing, "prompt and response are named together", f"add {missing} COLUMN")
    return {"instruction": arguments.prompt, "output": arguments.response}


def find_preset(registry: Registry, language: str) -> str | None:
    """Return the preset of general suites in a language; None if none is installed."""
    name = "general-zh" if language == "zh" else "general"
    return name if name in registry.presets else None


def _check(spec: Path) -> int:
    """Check the spec as `harness check` does."""
    try:
        return check.main(argparse.Namespace(spec=str(spec), overrides=[], json=False))
    except HarnessError as error:
        for line in error.lines():
            print(f"harness: {printable(line)}", file=sys.stderr)
        return error.exit_code
