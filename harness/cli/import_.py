"""`harness import`: turn the configuration of another trainer into a spec."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from harness.cli.options import Subparsers, add_command
from harness.errors import HarnessError
from harness.utils.formatting import printable

TOOLS = ("llamafactory", "axolotl", "ms-swift", "trl")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "import",
        main,
        "Turn a configuration of LLaMA-Factory, Axolotl, ms-swift or TRL into a spec, and list what differs.",
        "harness import llamafactory llama3_lora_sft.yaml data/dataset_info.json",
    )
    parser.add_argument("tool", choices=TOOLS, help="the trainer")
    parser.add_argument("file", metavar="FILE", type=Path, help="its configuration: YAML, JSON or a shell script")
    parser.add_argument(
        "dataset_info", metavar="DATASET_INFO", type=Path, nargs="?", help="LLaMA-Factory's file of data"
    )
    parser.add_argument("--output", metavar="SPEC", type=Path, help="default: FILE with the ending .spec.json")


def main(arguments: argparse.Namespace) -> int:
    """Write the spec, print the four lists, and validate it."""
    from harness.drafting.import_config import import_config
    from harness.registry import discover_plugins
    from harness.spec import schema, spec

    output = arguments.output or Path(f"{arguments.file.stem}.spec.json")
    if output.exists():
        raise HarnessError(str(output), "the file exists", "name another one: --output SPEC")
    imported = import_config(arguments.tool, arguments.file, arguments.dataset_info, output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(imported.document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _print_list("carried over", imported.carried)
    _print_list("changed in meaning", imported.changed)
    _print_list("not needed", imported.unneeded)
    _print_list("not expressible", imported.dropped)
    quoted = shlex.quote(str(output))
    print(f"wrote {quoted}")
    spec.load_spec(output, schema.compose_schema(discover_plugins()))
    print(f"next: harness check {quoted}")
    return 0


def _print_list(title: str, entries: Sequence[tuple[str, str]]) -> None:
    print(f"{title}: {len(entries)}")
    for key, text in entries:
        print(f"  {printable(key)}: {printable(text)}")
    print()
