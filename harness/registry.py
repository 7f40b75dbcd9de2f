"""Discover plugins through entry points and register their components.

Built-ins and third parties use the same way: a distribution lists modules under the entry-point group `harness`, and
each module implements hooks of `harness.hookspecs`. pluggy's own loader would let a second distribution silently
replace a component, so this module loads the entry points itself.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, distributions
from typing import Any

import pluggy

from harness import hookspecs
from harness.errors import HarnessError
from harness.interfaces.component import COMPONENT_TYPES, Component
from harness.spec_keys import data, training
from harness.types import Event

ENTRY_POINT_GROUP = "harness"
CORE_DISTRIBUTION = "harness-sft"
HEAVY_PACKAGES = ("torch", "numpy", "pandas", "transformers", "trl", "peft", "datasets", "evaluate", "mlflow")


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that failed to load. `harness plugins` lists it; a run fails only if its spec uses it."""

    distribution: str
    module: str
    error: str

    def __str__(self) -> str:
        return f"{self.distribution} ({self.module}): {self.error}"


@dataclass
class Registry:
    """The components of all plugins.

    Attributes:
        components: Component type -> name -> component.
        origins: (component type, name) -> the distribution that provides it.
        broken_plugins: Plugins that failed to load.
        manager: pluggy's manager; listeners are registered with it.
        muted: Whether events are not emitted. True in worker processes, whose main process emits them.
    """

    components: dict[str, dict[str, Component]] = field(default_factory=lambda: {kind: {} for kind in COMPONENT_TYPES})
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    broken_plugins: list[BrokenPlugin] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("harness"))
    muted: bool = False
    _failed_listeners: set[int] = field(default_factory=set)

    def add(self, component_type: str, name: str, component: Component, distribution: str) -> None:
        """Register a component.

        Raises:
            HarnessError: The name is taken, or the declaration is invalid.
        """
        where = f"{distribution}: {component_type[:-1]} {name!r}"
        if not isinstance(component, Component):
            raise HarnessError(where, f"is a {type(component).__name__}", "return harness.Component objects")
        other = self.origins.get((component_type, name))
        if other is not None:
            what = f"the distributions {other!r} and {distribution!r} both provide a {component_type[:-1]} {name!r}"
            raise HarnessError("plugins", what, "uninstall one of them, or rename its component")
        _validate_declaration(component, where, data.SOURCE_KEYS if component_type == "sources" else {})
        self.components[component_type][name] = component
        self.origins[component_type, name] = distribution

    def get(self, component_type: str, name: str) -> Component:
        """Return the component of a name.

        Raises:
            HarnessError: No plugin provides it. The hint has the nearest name, or the plugin that failed to load.
        """
        try:
            return self.components[component_type][name]
        except KeyError:
            raise self.unknown_component_error(f"{component_type[:-1]} {name!r}", component_type, name) from None

    def unknown_component_error(self, where: str, component_type: str, name: str) -> HarnessError:
        """Return the error for a name that no plugin provides."""
        hint = f"available: {', '.join(sorted(self.components[component_type]))}"
        near = get_close_matches(name, self.components[component_type], 1)
        if near:
            hint = f"did you mean {near[0]!r}?"
        elif self.broken_plugins:
            hint = f"a plugin that may provide it failed to load: {', '.join(map(str, self.broken_plugins))}"
        return HarnessError(where, f"no plugin provides a {component_type[:-1]} {name!r}", hint)

    def create(self, component_type: str, name: str, options: Mapping[str, Any]) -> Any:
        """Create a component from its own options. Options that the core adds to every component are not passed.

        Raises:
            HarnessError: The component is unknown, or its module cannot be imported.
        """
        component = self.get(component_type, name)
        where = f"{component_type[:-1]} {name!r} of {self.origins[component_type, name]}"
        module, _, attribute = component.factory.partition(":")
        try:
            factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        except HarnessError:
            raise
        except Exception as error:
            what = f"cannot import {component.factory!r}: {type(error).__name__}: {error}"
            raise HarnessError(where, what, "reinstall or fix that plugin") from error
        return factory(**{key: value for key, value in options.items() if key in component.options})

    def emit(self, event: Event) -> None:
        """Send an event to every listener. A listener that fails is named once and not called again."""
        if self.muted:
            return
        for implementation in self.manager.hook.harness_on_event.get_hookimpls():
            if id(implementation.plugin) in self._failed_listeners:
                continue
            try:
                implementation.function(event)
            except Exception as error:
                self._failed_listeners.add(id(implementation.plugin))
                text = f"the listener {implementation.plugin_name} failed and is ignored from now on: {error!r}"
                self.emit(Event("warning", event.stage, {"text": text}))


def discover_plugins(entries: Iterable[tuple[str, EntryPoint]] | None = None) -> Registry:
    """Load all plugins and register their components.

    Args:
        entries: Pairs (distribution, entry point), for tests; None: those installed.

    Raises:
        HarnessError: Two distributions provide a component of the same name.
    """
    registry = Registry()
    registry.manager.add_hookspecs(hookspecs)
    for distribution, entry in installed_entry_points() if entries is None else entries:
        name = f"{distribution}:{entry.value}"
        if registry.manager.has_plugin(name):
            continue  # one module that the distribution names under several entry points
        before = set(sys.modules)
        try:
            module = entry.load()
            _forbid_heavy_imports(before)
            registry.manager.register(module, name=name)
            registry.manager.check_pending()
        except (Exception, SystemExit) as error:
            if distribution == CORE_DISTRIBUTION:
                raise
            known = registry.manager.get_plugin(name)
            if known is not None:
                registry.manager.unregister(known)
            text = " ".join(f"{type(error).__name__}: {error}".split())
            registry.broken_plugins.append(BrokenPlugin(distribution, entry.value, text))
            continue
        _register_components(registry, module, distribution, entry, before)
    return registry


def installed_entry_points() -> list[tuple[str, EntryPoint]]:
    """Return (distribution, entry point) pairs of the group `harness`, the built-ins first.

    With `HARNESS_NO_THIRD_PARTY=1` there are only the built-ins.
    """
    entries: dict[tuple[str, str], EntryPoint] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "?").lower().replace("_", "-")
        if os.environ.get("HARNESS_NO_THIRD_PARTY") == "1" and name != CORE_DISTRIBUTION:
            continue
        for entry in distribution.entry_points:
            if entry.group == ENTRY_POINT_GROUP:
                entries.setdefault((name, entry.name), entry)
    return [
        (key[0], entry)
        for key, entry in sorted(entries.items(), key=lambda item: (item[0][0] != CORE_DISTRIBUTION, item[0]))
    ]


def _forbid_heavy_imports(modules_before: set[str]) -> None:
    heavy = sorted({name.partition(".")[0] for name in set(sys.modules) - modules_before} & set(HEAVY_PACKAGES))
    if heavy:
        raise ImportError(
            f"loading it imports {', '.join(heavy)}; import them in the module that Component.factory names"
        )


def _register_components(
    registry: Registry, module: Any, distribution: str, entry: EntryPoint, modules_before: set[str]
) -> None:
    registered: list[tuple[str, str]] = []
    try:
        for kind in COMPONENT_TYPES:
            hook = getattr(registry.manager.hook, f"harness_{kind}")
            for implementation in hook.get_hookimpls():
                if implementation.plugin is module:
                    for name, component in implementation.function().items():
                        registry.add(kind, name, component, distribution)
                        registered.append((kind, name))
        _forbid_heavy_imports(modules_before)
    except HarnessError as error:
        if error.where == "plugins" or distribution == CORE_DISTRIBUTION:
            raise
        _unregister_plugin(
            registry, module, registered, BrokenPlugin(distribution, entry.value, f"{error.where}: {error.what}")
        )
    except (Exception, SystemExit) as error:
        if distribution == CORE_DISTRIBUTION:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _unregister_plugin(registry, module, registered, BrokenPlugin(distribution, entry.value, text))


def _unregister_plugin(
    registry: Registry, module: Any, registered: list[tuple[str, str]], broken_plugin: BrokenPlugin
) -> None:
    for kind, name in registered:
        del registry.components[kind][name], registry.origins[kind, name]
    registry.manager.unregister(module)
    registry.broken_plugins.append(broken_plugin)


def _validate_declaration(component: Component, where: str, core_keys: Mapping[str, Any]) -> None:
    import jsonschema

    fragment = {"type": "object", "properties": dict(component.options), "required": list(component.required)}
    try:
        jsonschema.Draft7Validator.check_schema(fragment)
    except jsonschema.SchemaError as error:
        path = ".".join(map(str, error.absolute_path))
        what = f"its options are not a JSON Schema: {path}: {error.message}"
        raise HarnessError(where, what, "fix the declaration") from None
    if ":" not in component.factory:
        raise HarnessError(where, f"factory is {component.factory!r}", "write 'package.module:factory'")
    for name, option in component.options.items():
        if name in core_keys:
            raise HarnessError(where, f"its option {name!r} is a key of the core", "rename it")
        if not isinstance(option, Mapping):
            raise HarnessError(where, f"the option {name!r} is {option!r}", "write an object with a description")
        if not option.get("description"):
            raise HarnessError(where, f"the option {name!r} has no description", "add one sentence")
        if "default" not in option and name not in component.required:
            raise HarnessError(where, f"the option {name!r} has neither a default nor is required", "add one")
        if "default" in option:
            invalid = next(jsonschema.Draft7Validator(option).iter_errors(option["default"]), None)
            if invalid is not None:
                raise HarnessError(where, f"the default of {name!r} is invalid: {invalid.message}", "fix the default")
    for name in component.required:
        if name not in component.options:
            raise HarnessError(where, f"the required option {name!r} is not declared", "add it to options")
    for key in component.typical_ranges:
        if "usual" not in training.TRAIN_KEYS.get(key.removeprefix("train."), {}):
            raise HarnessError(where, f"{key!r} has no typical range", "name a numeric setting of train")
