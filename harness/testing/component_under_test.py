"""One component, ready to be checked: its options, its instances, and a tiny model to use it with."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.interfaces.component import Component
from harness.interfaces.component_example import ComponentExample
from harness.registry import Registry
from harness.spec.component_options import fill_component_options
from harness.testing.tiny_model import build_tiny_model, build_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CheckFailed(AssertionError):
    """A component breaks its contract. The message says how."""


class CheckSkipped(Exception):
    """A check needs something that is not there: a part of the component's example, or an optional package."""


def require(condition: object, message: str) -> None:
    """Fail the check unless the condition is true.

    Raises:
        CheckFailed: The condition is false.
    """
    if not condition:
        raise CheckFailed(message)


@dataclass
class ComponentUnderTest:
    """A registered component and its example.

    Attributes:
        registry: The loaded plugins.
        kind: The component type, e.g. `metrics`.
        name: Its name in the registry.
        folder: An empty folder for its files.
        example: What the checks cannot derive from the declaration.
    """

    registry: Registry
    kind: str
    name: str
    folder: Path
    example: ComponentExample

    @property
    def declaration(self) -> Component:
        """The declaration of the component."""
        return self.registry.get(self.kind, self.name)

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """Each option: that of the example, else the default, else a value that is valid by the declaration."""
        for name, text in self.example.files.items():
            (self.folder / name).write_text(text, encoding="utf-8")
        given = self.example.options(self.folder) if callable(self.example.options) else self.example.options
        declared = self.declaration.options
        required = {name: _valid_value(declared[name]) for name in self.declaration.required if name not in given}
        options = fill_component_options(self.registry, self.kind, self.name, {**required, **given})
        return {name: self._resolve_path(declared.get(name, {}), value) for name, value in options.items()}

    def _resolve_path(self, option: Mapping[str, Any], value: Any) -> Any:
        is_path = option.get("format") == "path" and isinstance(value, str)
        return str(self.folder / value) if is_path else value

    def create(self) -> Any:
        """Return a new instance with these options.

        Raises:
            CheckSkipped: A module that the example needs is missing.
        """
        missing = [module for module in self.example.needs if importlib.util.find_spec(module) is None]
        if missing:
            raise CheckSkipped(f"it needs {', '.join(missing)}")
        return self.registry.create(self.kind, self.name, self.options)

    @property
    def factory(self) -> Any:
        """The class or function that creates the component."""
        module, _, attribute = self.declaration.factory.partition(":")
        return getattr(importlib.import_module(module), attribute)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A byte-level tokenizer."""
        return _shared_tokenizer()

    def build_model(self) -> PreTrainedModel:
        """Return a new tiny model; its weights are the same in every call."""
        return build_tiny_model(self.tokenizer)


@functools.cache
def _shared_tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


def _valid_value(option: Mapping[str, Any]) -> Any:
    """Return a value that is valid for an option without a default."""
    types = option.get("type", ())
    types = [types] if isinstance(types, str) else types
    if "enum" in option:
        return option["enum"][0]
    if option.get("format") == "path":
        return "given.txt"
    if "string" in types:
        return "given"
    if "integer" in types or "number" in types:
        return option.get("minimum", option.get("exclusiveMinimum", 0) + 1)
    if "boolean" in types:
        return True
    if "array" in types:
        return [_valid_value(option["items"])]
    first = next(iter(option.get("anyOf", [{}])))
    wanted = [*option.get("required", ()), *first.get("required", ())]
    return {name: _valid_value(option["properties"][name]) for name in wanted}
