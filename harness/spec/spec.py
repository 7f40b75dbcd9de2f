"""Load a spec file: apply overrides, validate, fill in defaults, make paths absolute.

A run stores the filled spec, and component factories get their options from it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from harness.errors import HarnessError, raise_all
from harness.registry import BrokenPlugin
from harness.spec import json_locations, layers
from harness.spec.json_locations import JsonPath, LocatedJson
from harness.spec.presets import expand_presets
from harness.spec.schema import Schema, expand_shorthand, fill_defaults, iter_leaves, remove_defaults
from harness.spec.schema_errors import find_schema_errors
from harness.spec.yaml_locations import YAML_SUFFIXES, parse_yaml
from harness.utils import find_run
from harness.utils.data_suffixes import SOURCE_OF_SUFFIX
from harness.utils.formats import SPEC_FORMAT, format_problem
from harness.utils.formatting import shorten_text
from harness.utils.regular_files import read_regular_file
from harness.utils.shell_commands import harness_command

MAX_SPEC_BYTES = 64_000_000
"""A spec is never larger: a file of this size was named by mistake."""

DATA_SUFFIXES = SOURCE_OF_SUFFIX.keys() - {".json"}
"""Files that are named in place of a spec by mistake."""

MAX_ECHO = 100
"""Characters of an option that errors repeat."""


@dataclass(frozen=True)
class Spec:
    """A valid spec.

    Attributes:
        file: The spec's path.
        document: The spec with all defaults filled in and absolute paths.
        schema: The composed schema.
        located: The file's text and the location of each of its values.
        overrides: The `--set` options.
    """

    file: FilePath
    document: Mapping[str, Any]
    schema: Schema
    located: LocatedJson
    overrides: tuple[str, ...] = ()

    @property
    def changed(self) -> Mapping[str, Any]:
        """The values of the document that differ from the schema's defaults."""
        changed: Mapping[str, Any] = remove_defaults(dict(self.document), self.schema, self.schema)
        return changed

    def where(self, path: JsonPath) -> str:
        """Return where a path of the document was set: its `--set` option, or file, line and column."""
        key = ".".join(map(str, path))
        for override in reversed(self.overrides):
            override_key = override.partition("=")[0]
            if key == override_key or key.startswith(f"{override_key}."):
                return describe_override(override)
        return f"{self.located.where(path)} {key}"


def load_spec(
    source: str | FilePath | Mapping[str, Any],
    schema: Schema,
    overrides: Sequence[str] = (),
    broken_plugins: Sequence[BrokenPlugin] = (),
) -> Spec:
    """Load a spec.

    Args:
        source: The spec's path, or its JSON object. Paths in an object are relative to the working directory.
        schema: The composed schema.
        overrides: `key.of.the.spec=value`. The value is JSON, or else a string. null removes a mitigation or a suite.
        broken_plugins: Plugins that failed to load. An error about an unknown component names them.

    Raises:
        HarnessError: Everything that is wrong, each with line and column.
    """
    if isinstance(source, Mapping):
        path = FilePath("spec")
        located = json_locations.parse_json(_format_document(source), "spec")
    else:
        path = FilePath(source)
        located = _parse_file(path)
    if not isinstance(located.value, dict):
        raise HarnessError(str(source), "a spec is a JSON object", "write { ... }")
    # A profile is chosen before it is merged; every other override applies to the merged spec.
    for override in overrides:
        if override.partition("=")[0] == "profile":
            located = replace(located, value=_apply_override(located.value, override))
    if {"extends", "profile", "profiles"} & located.value.keys():
        located = layers.merge_spec_layers(located, path, schema, _parse_file, partial(_with_absolute_paths, schema))
    document = located.value
    for override in overrides:
        if override.partition("=")[0] != "profile":
            document = _apply_override(document, override)
    problem = format_problem(document.get("format", SPEC_FORMAT), SPEC_FORMAT)
    if problem is not None:
        raise HarnessError(Spec(path, document, schema, located, tuple(overrides)).where(("format",)), *problem)
    document = expand_shorthand(document, schema, schema)
    # The error of a value that an override set points to the override, not to the file.
    unvalidated = Spec(path, document, schema, located, tuple(overrides))
    raise_all(
        _error_at_override(error, unvalidated)
        for error in find_schema_errors(document, schema, located, broken_plugins)
    )
    document = expand_shorthand(expand_presets(document, schema, unvalidated.where), schema, schema)
    filled = fill_defaults(document, schema, schema)
    for at, leaf, value in list(iter_leaves(filled, schema, schema)):
        if isinstance(value, str) and leaf.get("format") == "model" and value.startswith(find_run.RUN_SCHEME):
            _set_value(filled, at, _resolve_run(value.removeprefix(find_run.RUN_SCHEME), path.parent, filled["output"]))
        elif isinstance(value, str) and leaf.get("format") in ("path", "model"):
            _set_value(filled, at, _resolve_path(value, path.parent, leaf["format"]))
    filled.pop("$schema", None)
    return Spec(path, filled, schema, located, tuple(overrides))


def _parse_file(path: FilePath) -> LocatedJson:
    if path.suffix.lower() in DATA_SUFFIXES and path.is_file():
        hint = f"draft a spec for it: {harness_command('init', path)}"
        raise HarnessError(str(path), "this is a file of rows, not a spec", hint)
    parse = parse_yaml if path.suffix.lower() in YAML_SUFFIXES else json_locations.parse_json
    return parse(_read_text_file(path), str(path))


def _with_absolute_paths(schema: Schema, document: Any, folder: FilePath) -> Any:
    """Return a part of a document whose paths are relative to a folder with absolute ones."""
    document = copy.deepcopy(document)
    for at, leaf, value in list(iter_leaves(document, schema, schema)):
        if not isinstance(value, str) or leaf.get("format") not in ("path", "model"):
            continue
        if leaf["format"] == "model" and value.startswith(find_run.RUN_SCHEME):
            name = value.removeprefix(find_run.RUN_SCHEME)
            if name.startswith("."):
                _set_value(document, at, f"{find_run.RUN_SCHEME}{(folder / name).absolute()}")
        else:
            _set_value(document, at, _resolve_path(value, folder, leaf["format"]))
    return document


def _format_document(document: Mapping[str, Any]) -> str:
    try:
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        hint = "use only dicts with string keys, lists, strings, finite numbers, booleans and None"
        raise HarnessError("spec", f"the object is not JSON: {error}", hint) from error


def _read_text_file(path: FilePath) -> str:
    try:
        return read_regular_file(path, MAX_SPEC_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise HarnessError(str(path), "the file does not exist", "check the path") from None
    except UnicodeDecodeError as error:
        raise HarnessError(f"{path}: byte {error.start}", "the file is not UTF-8", "save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise HarnessError(str(path), f"cannot read it: {reason}", "name a JSON file") from None


def _error_at_override(error: HarnessError, spec: Spec) -> HarnessError:
    key = error.where.removeprefix(spec.located.name).partition(" ")[2]
    error_path = [] if key == "spec" else key.split(".")
    for override in reversed(spec.overrides):
        override_path = override.partition("=")[0].split(".")
        below = override_path[: len(error_path)] == error_path and override_path[len(error_path) :]
        is_named = below and (repr(below[0]) in error.what or json.dumps(below[0]) in error.what)
        if error_path[: len(override_path)] == override_path or is_named:
            return HarnessError(describe_override(override), f"{key}: {error.what}", error.hint)
    return error


def describe_override(override: str) -> str:
    """Return a `--set` option as errors name it."""
    return f"--set {shorten_text(override, MAX_ECHO)}"


def _apply_override(document: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    where = describe_override(override)
    if json_locations.INVALID_CHARACTERS.search(override):
        raise HarnessError(where, "it contains NUL or bytes that are not UTF-8", "write the characters themselves")
    if not equals or not key:
        raise HarnessError(where, "an override is key=value", "e.g. --set train.learning_rate=1e-5")
    try:
        value = json_locations.parse_json(text, key).value
    except HarnessError:
        value = text
    result: dict[str, Any] = json.loads(json.dumps(document))
    node: Any = result
    *parents, last = key.split(".")
    for step in parents:
        if isinstance(node, list) and step.isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, dict):
            if isinstance(node.get(step), str):
                node[step] = {node[step]: {}}
            node = node.setdefault(step, {})
        else:
            raise HarnessError(where, f"the spec has no key {shorten_text(step, MAX_ECHO)!r} here", "check the key")
    if value is None and parents in (["mitigations"], ["evaluate"]) and isinstance(node, dict):
        node.pop(last, None)  # null removes the component; it does not mean 'without options'
    elif isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    elif parents[-1:] == ["held_out"] and isinstance(node, int | float):
        by_time = {"column": "COLUMN", "from": "2026-01-31"}
        whole = {**(by_time if last in by_time else {"share": node or 0.1}), last: value}
        what = f"held_out is the number {node}, and {shorten_text(last, MAX_ECHO)!r} is a key of an object"
        hint = f"set the object: --set '{'.'.join(parents)}={json.dumps(whole, ensure_ascii=False)}'"
        raise HarnessError(where, what, hint)
    else:
        raise HarnessError(where, f"the spec has no key {shorten_text(last, MAX_ECHO)!r} here", "check the key")
    return result


def _set_value(document: Any, path: JsonPath, value: Any) -> None:
    for step in path[:-1]:
        document = document[step]
    document[path[-1]] = value


def _resolve_run(name: str, folder: FilePath, output: str) -> str:
    """Return the run with its absolute folder. A run that does not exist stays as it is written."""
    relative = folder / name if name.startswith((".", "/")) else name
    try:
        return f"{find_run.RUN_SCHEME}{find_run.find_run(relative, output).absolute().resolve()}"
    except HarnessError:
        return f"{find_run.RUN_SCHEME}{name}"


def _resolve_path(value: str, folder: FilePath, value_format: str) -> str:
    """Return the absolute path. URLs, and models that are not paths of this machine (hub ids), stay as they are."""
    if "://" in value or value.startswith("pypi:"):
        return value
    path = FilePath(value)
    if value == "~" or value.startswith("~/"):
        path = path.expanduser()
    absolute = path if path.is_absolute() else (folder / path)
    if value_format == "model" and not value.startswith((".", "/", "~")) and not os.path.exists(absolute):
        return value
    return os.path.realpath(absolute)  # unlike `Path.resolve`, does not raise for a symlink loop; reading it will
