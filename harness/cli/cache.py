"""`harness cache`: show what the cache holds, and delete what is old or too much."""

from __future__ import annotations

import argparse
import re

from harness.cli.options import Subparsers, add_command, add_json_argument, print_json
from harness.errors import HarnessError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "cache",
        main,
        "Show the cache: models, tokens, Fisher information, evaluations. Delete what is old or too much.",
        "harness cache --prune --older-than 30 --max-size 20GB",
    )
    parser.add_argument("--prune", action="store_true", help="delete what the other options select, and leftovers")
    parser.add_argument("--older-than", metavar="DAYS", type=float, help="entries that were not used for so many days")
    parser.add_argument("--max-size", metavar="SIZE", help="the least recently used entries beyond a size, e.g. 20GB")
    parser.add_argument("--kind", action="append", default=[], help="only this kind, e.g. models; may be repeated")
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the entries by kind, or delete some of them."""
    from harness.utils import cache_contents
    from harness.utils.cache_dir import cache_root
    from harness.utils.formatting import format_count

    unknown = [kind for kind in arguments.kind if kind not in cache_contents.KINDS]
    if unknown:
        raise HarnessError(f"--kind {unknown[0]}", "there is no such kind", f"known: {', '.join(cache_contents.KINDS)}")
    entries = [entry for entry in cache_contents.list_entries() if not arguments.kind or entry.kind in arguments.kind]
    older_than = None if arguments.older_than is None else arguments.older_than * 24 * 3600
    selected = cache_contents.select_entries(entries, older_than=older_than, max_bytes=_parse_size(arguments.max_size))
    freed = cache_contents.delete_entries(selected) if arguments.prune else 0
    if arguments.prune:
        entries = [entry for entry in entries if entry not in selected]
    by_kind = {kind: [entry for entry in entries if entry.kind == kind] for kind in cache_contents.KINDS}
    if arguments.json:
        kinds = {
            kind: {"entries": len(found), "bytes": sum(entry.size for entry in found)}
            for kind, found in by_kind.items()
        }
        print_json({"folder": str(cache_root()), "kinds": kinds, "deleted": len(selected) if arguments.prune else 0})
        return 0
    for kind, found in by_kind.items():
        if found:
            size = format_count(sum(entry.size for entry in found), "B")
            print(f"{kind:<15} {len(found):>6,}  {size:>9}  {cache_contents.KINDS[kind]}")
    print(f"{cache_root()}: {format_count(sum(entry.size for entry in entries), 'B')}")
    if arguments.prune:
        print(f"deleted {len(selected):,} entries, {format_count(freed, 'B')}")
    elif selected:
        size = format_count(sum(entry.size for entry in selected), "B")
        print(f"--prune would delete {len(selected):,} entries, {size}")
    return 0


def _parse_size(text: str | None) -> int | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip(), re.IGNORECASE)
    if match is None:
        raise HarnessError(f"--max-size {text[:40]}", "is not a size", "write a number with MB or GB, e.g. 20GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])
