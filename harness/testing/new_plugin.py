"""Write a new plugin distribution: `harness plugins --new metric NAME`.

Each folder of `new_plugin_files` is a kind of component, with the files of a working example. `$name` and the other
placeholders of `string.Template` are replaced. The folder `common` has the files of every distribution.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from harness.errors import HarnessError
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.registry import Registry

FILES = files("harness.testing") / "new_plugin_files"

COMMON_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "test.yml": ".github/workflows/test.yml",
    "conftest.py": "tests/conftest.py",
}
KIND_FILES = {
    "init.py": "$package/__init__.py",
    "component.py": "$package/$name.py",
    "test.py": "tests/test_$name.py",
}
"""File of a kind's folder, without `.template` -> path in the distribution."""


def available_kinds() -> list[str]:
    """Return the kinds of components for which there are files, in the singular."""
    return sorted(folder.name for folder in FILES.iterdir() if folder.is_dir() and folder.name != "common")


def write_plugin(kind: str, name: str, folder: Path | None, registry: Registry) -> Path:
    """Write a distribution with one component that works, its tests, a README and a CI workflow.

    Args:
        kind: One of `available_kinds`.
        name: The component's name, an identifier in lower case.
        folder: Where to write it, an empty or new folder; None: the distribution's name in the working directory.
        registry: The loaded plugins.

    Returns:
        The folder.

    Raises:
        HarnessError: The kind or name is invalid, the name is that of a built-in, or the folder is not empty.
    """
    kinds = available_kinds()
    if kind not in kinds:
        raise HarnessError("--new", f"{kind!r} is not a kind of component", f"write one of {', '.join(kinds)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise HarnessError("--new", f"{name!r} is not a valid name", "use lower-case letters, digits and '_'")
    if registry.origins.get((f"{kind}s", name)) == CORE_DISTRIBUTION:
        raise HarnessError("--new", f"there is a built-in {kind} {name!r}", "choose another name")
    if find_spec(f"harness_{name}") is not None:
        raise HarnessError("--new", f"a package harness_{name} is installed", "choose another name")
    values = {
        "kind": kind,
        "name": name,
        "package": f"harness_{name}",
        "distribution": f"harness-{name.replace('_', '-')}",
        "class_name": "".join(word.capitalize() for word in name.split("_")),
        "harness_version": version(CORE_DISTRIBUTION),
    }
    values["usage"] = _usage(kind, values)
    target = Path(values["distribution"]) if folder is None else folder
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HarnessError(str(target), "exists and is not an empty folder", "name another one with --folder")
    for group, paths in (("common", COMMON_FILES), (kind, KIND_FILES)):
        for source, path in paths.items():
            file = target / Template(path).substitute(values)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_fill_in(f"{group}/{source}", values), encoding="utf-8")
    return target


def _usage(kind: str, values: dict[str, str]) -> str:
    """Return how the component is used, for the README: a part of a spec, or what the kind's `usage.md` says."""
    if (FILES / kind / "spec.json.template").is_file():
        return f"In a spec:\n\n```json\n{_fill_in(f'{kind}/spec.json', values).strip()}\n```"
    return _fill_in(f"{kind}/usage.md", values).strip()


def _fill_in(source: str, values: dict[str, str]) -> str:
    text = (FILES / f"{source}.template").read_text(encoding="utf-8")
    return Template(text).substitute(values)
