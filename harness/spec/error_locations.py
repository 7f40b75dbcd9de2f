"""Where in a spec an error of its data comes from: the line of the key, in place of the key alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, ManyErrors, RunError
from harness.spec.json_locations import JsonPath
from harness.spec.spec import Spec

LOCATED_SECTIONS = ("sources", "evaluate", "checks", "train", "mitigations")


def locate_error(spec: Spec, error: HarnessError) -> HarnessError:
    """Return an error with file, line and column of the key that it is about.

    The location of an error is a key of the spec (`sources.desk`), a data file (`desk.csv`), or a row (`desk.csv:7`). A
    key is located. So is a file that the `path` of a source names; its error keeps the name. A row stays as it is.
    """
    if isinstance(error, ManyErrors):
        return ManyErrors(locate_error(spec, single) for single in error.errors)
    if isinstance(error, RunError):
        return error
    key = _key_in_document(spec.document, error.where)
    if key is not None:
        return type(error)(spec.where(key), error.what, error.hint)
    path = _path_of_file(spec.document["sources"], error.where)
    if path is not None:
        return type(error)(f"{spec.where(path)}: {error.where}", error.what, error.hint)
    return error


@contextmanager
def locate_errors(spec: Spec) -> Iterator[None]:
    """Locate every error of bad input that leaves the context, see `locate_error`."""
    try:
        yield
    except HarnessError as error:
        located = locate_error(spec, error)
        if located is error:
            raise
        raise located from error


def _key_in_document(document: Mapping[str, Any], where: str) -> JsonPath | None:
    """Return the path of a dotted key; None if it is not one. Names of sources and suites may contain dots."""
    section, _, rest = where.partition(".")
    if section not in LOCATED_SECTIONS or not rest:
        return None
    names = [name for name in document[section] if rest == name or rest.startswith(f"{name}.")]
    if not names:
        return None
    name = max(names, key=len)
    more = rest[len(name) + 1 :]
    kind = next(iter(document[section][name])) if section == "sources" else None
    inner = tuple(more.split(".")) if more else ()
    return (section, name, *((kind,) if inner and kind not in (None, inner[0]) else ()), *inner)


def _path_of_file(sources: Mapping[str, Mapping[str, Any]], where: str) -> JsonPath | None:
    """Return the path of the key that names a data file; None if no source does."""
    for name, source in sources.items():
        kind, options = next(iter(source.items()))
        path = options.get("path")
        for index, one in enumerate(path if isinstance(path, list) else [path]):
            if isinstance(one, str) and "://" not in one and Path(one) == Path.cwd() / where:
                return ("sources", name, kind, "path", *((index,) if isinstance(path, list) else ()))
    return None
