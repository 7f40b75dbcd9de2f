"""The entry points of installed plugins. Imports little, since `harness --help` reads them."""

from __future__ import annotations

import os
import re
from importlib.metadata import EntryPoint, distributions

from harness.errors import HarnessError
from harness.interfaces.component import CORE_DISTRIBUTION

ENTRY_POINT_GROUP = "harness"
DISABLE_VARIABLE = "HARNESS_DISABLE_PLUGINS"


def installed_entry_points() -> list[tuple[str, EntryPoint]]:
    """Return (distribution, entry point) pairs of the group `harness`, the built-ins first.

    With `HARNESS_NO_THIRD_PARTY=1` there are only the built-ins. `HARNESS_DISABLE_PLUGINS` names distributions to leave
    out, separated by commas.

    Raises:
        HarnessError: A distribution to leave out is not installed, or is harness itself.
    """
    entries: dict[tuple[str, str], EntryPoint] = {}
    disabled = {normalize_name(name) for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()}
    only_built_in = os.environ.get("HARNESS_NO_THIRD_PARTY") == "1"
    installed = set()
    for distribution in distributions():
        own = [entry for entry in distribution.entry_points if entry.group == ENTRY_POINT_GROUP]
        if not own:
            continue  # before its metadata is read, which takes longer
        name = normalize_name(distribution.metadata["Name"] or "?")
        if only_built_in and name != CORE_DISTRIBUTION:
            continue
        installed.add(name)
        for entry in own if name not in disabled else ():
            entries.setdefault((name, entry.name), entry)
    if CORE_DISTRIBUTION in disabled:
        raise HarnessError(DISABLE_VARIABLE, "the built-in components cannot be disabled", "name another distribution")
    unknown = sorted(disabled - installed)
    if unknown and not only_built_in:
        what = f"no plugin distribution {unknown[0]!r} is installed"
        others = ", ".join(sorted(installed - {CORE_DISTRIBUTION})) or "none"
        raise HarnessError(DISABLE_VARIABLE, what, f"installed plugin distributions: {others}")
    return [
        (key[0], entry)
        for key, entry in sorted(entries.items(), key=lambda item: (item[0][0] != CORE_DISTRIBUTION, item[0]))
    ]


def has_third_party_plugins() -> bool:
    """Return whether another distribution than harness has plugins that are not disabled."""
    return any(distribution != CORE_DISTRIBUTION for distribution, _ in installed_entry_points())


def normalize_name(distribution: str) -> str:
    """Return the normalized name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
