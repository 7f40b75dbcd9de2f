"""Build a spec on another one (`extends`) and on the values of a machine (`profiles`).

The layers, the first overrides the others: `--set`, the chosen profile, the file, the specs that it extends. A chosen
profile is that of the file, merged into those of the same name of the specs that it extends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.spec.json_locations import JsonPath, LocatedJson
from harness.spec.schema import Schema, expand_shorthand, iter_children, resolve_ref

MAX_LAYERS = 10
"""Specs that extend one another."""

REMOVABLE = ("sources", "mitigations", "evaluate")
"""Keys of a spec in which null removes an entry of an earlier layer."""

ParseFile = Callable[[Path], LocatedJson]
"""Reads and parses the file of a spec."""


@dataclass(frozen=True)
class LayeredJson(LocatedJson):
    """The merged value of several files; a location is in the first file that has the path.

    Attributes:
        layers: The files, and the path at which each has the spec, the overriding ones first.
    """

    layers: tuple[tuple[LocatedJson, JsonPath], ...] = ()

    def where(self, path: JsonPath) -> str:
        """Return `file:line:column` of the path, or of its nearest parent that is in a file."""
        shortened = path
        while True:
            for located, prefix in self.layers:
                if (*prefix, *shortened) in located.offsets and (shortened or not prefix):
                    return located.where((*prefix, *shortened))
            shortened = shortened[:-1]


def merge_spec_layers(
    located: LocatedJson, path: Path, schema: Schema, parse: ParseFile, resolve_paths: Callable[[Any, Path], Any]
) -> LocatedJson:
    """Return the spec with the specs that it extends and its chosen profile, without these keys.

    Args:
        located: The parsed file, or its object after `--set`.
        path: Its path.
        schema: The composed schema.
        parse: Parses another file.
        resolve_paths: Makes the paths of a document absolute, given the folder of its file.

    Raises:
        HarnessError: A file cannot be read, extends itself, or a profile does not exist.
    """
    merger = _Merger(schema, parse, resolve_paths)
    value = merger.merge(located, path)
    name, layers, profiles = value.pop("profile", None), merger.layers, merger.profiles
    if name is not None:
        if not isinstance(name, str) or name not in profiles:
            near = get_close_matches(str(name), profiles, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the profiles are: {', '.join(profiles) or 'none'}"
            raise HarnessError(f"{located.where(('profile',))} profile", f"there is no profile {name!r}", hint)
        for profile in profiles[name]:
            value = dict(merge_values(value, profile, schema, schema))
        layers[:0] = [(layer, ("profiles", name)) for layer, _ in layers if ("profiles", name) in layer.offsets]
    if len(layers) == 1 and name is None:
        return LocatedJson(located.name, located.text, value, located.offsets)
    return LayeredJson(located.name, located.text, value, located.offsets, tuple(layers))


class _Merger:
    """Merges a file into those that it extends.

    Attributes:
        layers: As `LayeredJson.layers`.
        profiles: Name -> the profiles of all files with this name, the overriding ones last.
    """

    def __init__(self, schema: Schema, parse: ParseFile, resolve_paths: Callable[[Any, Path], Any]) -> None:
        self._schema, self._parse, self._resolve_paths = schema, parse, resolve_paths
        self.layers: list[tuple[LocatedJson, JsonPath]] = []
        self.profiles: dict[str, list[Mapping[str, Any]]] = {}

    def merge(self, located: LocatedJson, path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
        """Return the merged value without `extends` and `profiles`.

        Args:
            located: The parsed file.
            path: Its path.
            chain: The files that extend it.
        """
        self.layers.append((located, ()))
        value = dict(expand_shorthand(located.value, self._schema, self._schema))
        profiles, extended = value.pop("profiles", None) or {}, value.pop("extends", None)
        if not isinstance(profiles, Mapping) or not all(isinstance(profile, Mapping) for profile in profiles.values()):
            where = f"{located.where(('profiles',))} profiles"
            raise HarnessError(where, "is not an object of objects", 'e.g. {"gpu": {}}')
        if extended is not None:
            parents = self._merge_extended(extended, located, path, (*chain, path.resolve()))
            value = dict(merge_values(parents, value, self._schema, self._schema))
        for name, profile in profiles.items():  # after those of the files that this one extends
            expanded = expand_shorthand(profile, self._schema, self._schema)
            self.profiles.setdefault(name, []).append(self._resolve_paths(expanded, path.parent))
        return value

    def _merge_extended(
        self, extended: Any, located: LocatedJson, path: Path, chain: tuple[Path, ...]
    ) -> dict[str, Any]:
        """Return the merged value of the files that a file extends, with absolute paths."""
        where = f"{located.where(('extends',))} extends"
        names = [extended] if isinstance(extended, str) else extended
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise HarnessError(where, "is neither a path nor a list of paths", 'e.g. "extends": "base.json"')
        merged: dict[str, Any] = {}
        for name in names:
            file = (path.parent / name).resolve()
            if file in chain:
                raise HarnessError(where, f"{name} extends this file again", "remove one of the two")
            if len(chain) >= MAX_LAYERS:
                raise HarnessError(where, f"more than {MAX_LAYERS} specs extend one another", "merge some of them")
            parsed = self._parse(file)
            if not isinstance(parsed.value, dict):
                raise HarnessError(str(file), "a spec is a JSON object", "write { ... }")
            parent = self._resolve_paths(self.merge(parsed, file, chain), file.parent)
            merged = dict(merge_values(merged, parent, self._schema, self._schema))
        return merged


def merge_values(base: Any, overriding: Any, schema: Schema, root: Schema) -> Any:
    """Return a value with another one merged into it.

    Objects are merged key by key. A component, such as `template`, is merged with the same component, and replaced by
    another one. Lists and plain values are replaced. null removes a source, a mitigation or a suite.

    Args:
        base: The value of the earlier layer.
        overriding: The value of the later layer.
        schema: The schema of both.
        root: The composed schema.
    """
    if not isinstance(base, Mapping) or not isinstance(overriding, Mapping):
        return overriding
    schema = resolve_ref(schema, root)
    if schema.get("maxProperties") == 1 and base.keys() != overriding.keys():
        return overriding
    merged, children = dict(base), dict(iter_children(schema, overriding))
    removable = [resolve_ref(root["properties"][key], root) for key in REMOVABLE]
    for key, value in overriding.items():
        if value is None and any(schema is candidate for candidate in removable):
            merged.pop(key, None)
        elif key in base:
            merged[key] = merge_values(base[key], value, children.get(key, {}), root)
        else:
            merged[key] = value
    return merged
