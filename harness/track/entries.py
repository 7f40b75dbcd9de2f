"""A run's values → what an MLflow server takes: flat parameters, allowed names, no secrets, batches in its limits.

Imports no MLflow: it knows the server's limits, not the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from harness.contracts import Stage
from harness.store import without_secrets

PARAMS_IN_BATCH = 100
METRICS_IN_BATCH = 1000
LONGEST_VALUE = 500
LONGEST_NAME = 250
LONGEST_DIGEST = 36
CUT = "… (cut; whole in spec.json)"

SECRET = re.compile(r"(?:^|[._-])(?:token|password|passwd|secret|credentials?|api_?key)$", re.IGNORECASE)

T = TypeVar("T")


def public(value: Any, key: str = "") -> Any:
    """The value without what nobody else should read: passwords in URLs, and what stands under a secret's name."""
    if isinstance(value, Mapping):
        return {name: public(one, str(name)) for name, one in value.items()}
    if SECRET.search(key) and value is not None:
        return "(left out)"
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    return without_secrets(value) if isinstance(value, str) else value


def parameters(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `key.of.the.spec` -> text of at most 500 characters; a longer one is cut and says so.

    Lists and empty objects are JSON text. Names that the server refuses are changed, and stay apart.
    """
    flat: dict[str, str] = {}
    for path, value in _leaves(public(settings), prefix):
        name = allowed(path)
        while name in flat:
            name = f"{name[: LONGEST_NAME - 1]}_"
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        flat[name] = text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - len(CUT)] + CUT
    return flat


def allowed(name: str) -> str:
    """The name with what MLflow refuses in names replaced by `_`, at most 250 characters long."""
    text = re.sub(r"[^\w./ :-]", "_", name)
    # MLflow takes names for paths, and refuses those that a path library would write otherwise.
    parts = [part if part.strip(".") else part.replace(".", "_") for part in text.split("/") if part]
    return ("/".join(parts) or "_")[:LONGEST_NAME]


def batches(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The entries in pieces of at most `size`."""
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def stage_parameters(stage: Stage) -> dict[str, str]:
    """The settings of one stage and the shares of its sources."""
    shares = {
        part.source: {"role": part.role, "share": part.share, "unit": part.unit}
        if part.share is not None
        else part.role
        for part in stage.parts
    }
    return parameters({"train": stage.train, "sources": shares})


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _leaves(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
