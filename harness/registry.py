"""Entry points → components. Knows where plugins come from, not what they do.

Built-ins and third parties walk the same road: a distribution lists modules under the entry-point group `harness`,
and each module implements hooks of `harness.hookspecs`. pluggy's own loader would let a second distribution silently
replace a component, so the loop is ours.
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
from harness.events import Event, WarningRaised
from harness.interfaces.component import COMPONENT_TYPES, Component
from harness.spec_keys import data, training

ENTRY_POINT_GROUP = "harness"
CORE_DISTRIBUTION = "harness-sft"
HEAVY_PACKAGES = ("torch", "numpy", "pandas", "transformers", "trl", "peft", "datasets", "evaluate", "mlflow")


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be listed. Shown by `harness plugins`; an error only when a spec needs it."""

    distribution: str
    module: str
    error: str

    def __str__(self) -> str:
        return f"{self.distribution} ({self.module}): {self.error}"


@dataclass
class Registry:
    """The components by kind and name, the distribution each comes from, and the plugins that are broken."""

    components: dict[str, dict[str, Component]] = field(default_factory=lambda: {kind: {} for kind in COMPONENT_TYPES})
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    broken_plugins: list[BrokenPlugin] = field(default_factory=list)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("harness"))
    muted: bool = False
    """Whether listeners are told nothing: in a process that works beside the one that tells them."""
    _failed_listeners: set[int] = field(default_factory=set)

    def add(self, component_type: str, name: str, component: Component, distribution: str) -> None:
        """Take a component in. Raises HarnessError when its name is taken or its declaration is not sound."""
        where = f"{distribution}: {component_type[:-1]} {name!r}"
        if not isinstance(component, Component):
            raise HarnessError(where, f"is a {type(component).__name__}", "return harness.Component objects")
        other = self.origins.get((component_type, name))
        if other is not None:
            what = f"the distributions {other!r} and {distribution!r} both bring a {component_type[:-1]} {name!r}"
            raise HarnessError("plugins", what, "uninstall one of them, or rename its component")
        _validate_declaration(component, where, data.SOURCE_KEYS if component_type == "sources" else {})
        self.components[component_type][name] = component
        self.origins[component_type, name] = distribution

    def get(self, component_type: str, name: str) -> Component:
        """The component of that name. Raises HarnessError with the nearest name, or with the plugin that is broken."""
        try:
            return self.components[component_type][name]
        except KeyError:
            raise self.unknown_component_error(f"{component_type[:-1]} {name!r}", component_type, name) from None

    def unknown_component_error(self, where: str, component_type: str, name: str) -> HarnessError:
        """The error for a name that no plugin brings."""
        hint = f"there are: {', '.join(sorted(self.components[component_type]))}"
        near = get_close_matches(name, self.components[component_type], 1)
        if near:
            hint = f"did you mean {near[0]!r}?"
        elif self.broken_plugins:
            hint = f"a plugin that may bring it does not load: {', '.join(map(str, self.broken_plugins))}"
        return HarnessError(where, f"no plugin brings a {component_type[:-1]} {name!r}", hint)

    def create(self, component_type: str, name: str, options: Mapping[str, Any]) -> Any:
        """The component made with its own options; those that the core adds to every component are left out."""
        component = self.get(component_type, name)
        where = f"{component_type[:-1]} {name!r} of {self.origins[component_type, name]}"
        module, _, attribute = component.factory.partition(":")
        try:
            factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        except HarnessError:
            raise
        except Exception as error:
            what = f"{component.factory!r} does not import: {type(error).__name__}: {error}"
            raise HarnessError(where, what, "reinstall or mend that plugin") from error
        return factory(**{key: value for key, value in options.items() if key in component.options})

    def emit(self, event: Event) -> None:
        """Tell every listener. One that fails is named once and not called again; the run goes on."""
        if self.muted:
            return
        for implementation in self.manager.hook.harness_on_event.get_hookimpls():
            if id(implementation.plugin) in self._failed_listeners:
                continue
            try:
                implementation.function(event)
            except Exception as error:
                self._failed_listeners.add(id(implementation.plugin))
                text = f"the listener {implementation.plugin_name} failed and is left out from here on: {error!r}"
                self.emit(WarningRaised(stage_index=event.stage_index, text=text))


def discover_plugins(entries: Iterable[tuple[str, EntryPoint]] | None = None) -> Registry:
    """All components of all installed plugins. entries: (distribution, entry point), for tests; None: the installed.

    Raises HarnessError when two distributions bring a component of the same name.
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
    """(distribution, entry point) of the group `harness`, ours first; `HARNESS_NO_THIRD_PARTY=1` leaves only ours."""
    found: dict[tuple[str, str], EntryPoint] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "?").lower().replace("_", "-")
        if os.environ.get("HARNESS_NO_THIRD_PARTY") == "1" and name != CORE_DISTRIBUTION:
            continue
        for entry in distribution.entry_points:
            if entry.group == ENTRY_POINT_GROUP:
                found.setdefault((name, entry.name), entry)
    return [
        (key[0], entry)
        for key, entry in sorted(found.items(), key=lambda item: (item[0][0] != CORE_DISTRIBUTION, item[0]))
    ]


def _forbid_heavy_imports(modules_before: set[str]) -> None:
    heavy = sorted({name.partition(".")[0] for name in set(sys.modules) - modules_before} & set(HEAVY_PACKAGES))
    if heavy:
        raise ImportError(f"listing it imports {', '.join(heavy)}; import them in the module that Component.load names")


def _register_components(
    registry: Registry, module: Any, distribution: str, entry: EntryPoint, modules_before: set[str]
) -> None:
    taken: list[tuple[str, str]] = []
    try:
        for kind in COMPONENT_TYPES:
            hook = getattr(registry.manager.hook, f"harness_{kind}")
            for implementation in hook.get_hookimpls():
                if implementation.plugin is module:
                    for name, component in implementation.function().items():
                        registry.add(kind, name, component, distribution)
                        taken.append((kind, name))
        _forbid_heavy_imports(modules_before)
    except HarnessError as error:
        if error.where == "plugins" or distribution == CORE_DISTRIBUTION:
            raise
        _unregister_plugin(
            registry, module, taken, BrokenPlugin(distribution, entry.value, f"{error.where}: {error.what}")
        )
    except (Exception, SystemExit) as error:
        if distribution == CORE_DISTRIBUTION:
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _unregister_plugin(registry, module, taken, BrokenPlugin(distribution, entry.value, text))


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
        place = ".".join(map(str, error.absolute_path))
        raise HarnessError(where, f"its options are no JSON Schema: {place}: {error.message}", "mend it") from None
    if ":" not in component.factory:
        raise HarnessError(where, f"load is {component.factory!r}", "write 'package.module:factory'")
    for name, option in component.options.items():
        if name in core_keys:
            raise HarnessError(where, f"its option {name!r} is a word of the core", "rename it")
        if not isinstance(option, Mapping):
            raise HarnessError(where, f"the option {name!r} is {option!r}", "write an object with a description")
        if not option.get("description"):
            raise HarnessError(where, f"the option {name!r} has no description", "add one sentence")
        if "default" not in option and name not in component.required:
            raise HarnessError(where, f"the option {name!r} has neither a default nor is required", "add one")
        if "default" in option:
            wrong = next(jsonschema.Draft7Validator(option).iter_errors(option["default"]), None)
            if wrong is not None:
                raise HarnessError(where, f"the default of {name!r} does not fit: {wrong.message}", "mend it")
    for name in component.required:
        if name not in component.options:
            raise HarnessError(where, f"the required option {name!r} is not declared", "add it to options")
    for key in component.typical_ranges:
        if "usual" not in training.TRAIN_KEYS.get(key.removeprefix("train."), {}):
            raise HarnessError(where, f"{key!r} has no usual range that could differ", "name a setting of train")
