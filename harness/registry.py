"""Discover plugins through entry points and register their components.

Built-ins and third parties use the same way: a distribution lists modules under the entry-point group `harness`, and
each module implements hooks of `harness.hookspecs`. pluggy's own loader would let a second distribution silently
replace a component, so this module loads the entry points itself.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from typing import Any

import pluggy

from harness import hookspecs
from harness.errors import ComponentError, HarnessError
from harness.events import Event, WarningRaised
from harness.interfaces.check import Check
from harness.interfaces.command import Command
from harness.interfaces.component import COMPONENT_TYPES, CORE_DISTRIBUTION, SUPPORTED_API, Component
from harness.interfaces.exporter import Exporter
from harness.interfaces.guard import (
    IDENTITY_ATTRIBUTE,
    ComponentIdentity,
    GuardedComponent,
    describe_exception,
    is_own_os_error,
    missing_members,
    passes_unchanged,
)
from harness.interfaces.metric import Metric
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.mode import Mode
from harness.interfaces.optimizer import Optimizer
from harness.interfaces.preset import Preset
from harness.interfaces.row_format import RowFormat
from harness.interfaces.scheduler import Scheduler
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.interfaces.tracker import Tracker
from harness.plugin_entry_points import ENTRY_POINT_GROUP as ENTRY_POINT_GROUP
from harness.plugin_entry_points import installed_entry_points as installed_entry_points
from harness.plugin_listener import TIME_LIMIT, PluginListener
from harness.spec_keys import data, evaluation, run, training
from harness.utils.formatting import printable, shorten_words
from harness.utils.redaction import redact_text

SLOW_IMPORT_SECONDS = 5.0
"""After so many seconds a plugin that is being imported is named."""
INTERFACES: Mapping[str, type[GuardedComponent]] = {
    "templates": Template,
    "sources": Source,
    "row_formats": RowFormat,
    "modes": Mode,
    "mitigations": Mitigation,
    "metrics": Metric,
    "optimizers": Optimizer,
    "schedulers": Scheduler,
    "checks": Check,
    "trackers": Tracker,
    "exporters": Exporter,
}
"""Component type -> the base class that its components extend."""
RESERVED_NAMES: Mapping[str, Mapping[str, Any]] = {
    "row_formats": dict.fromkeys(data.BUILT_IN_FORMS),
    "checks": {**data.CHECKS_KEYS, **dict.fromkeys(("near_duplicates", "contamination"))},
    "trackers": run.TRACK_KEYS,
}
"""Component type -> keys of the core in the section of the spec that names its components."""
CORE_OPTIONS: Mapping[str, Mapping[str, Any]] = {"sources": data.SOURCE_KEYS, "checks": data.PLUGIN_CHECK_KEYS}
"""Component type -> the options that the core adds to every component of it."""
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

    A component has its short name, unless several distributions provide that name: a built-in keeps it, and every other
    one is `distribution/name`. That longer name finds a component always.

    Attributes:
        components: Component type -> name -> component.
        origins: (component type, name) -> the distribution that provides it.
        clashes: (component type, short name) -> the long names of the components that lost it.
        modules: Distribution -> its plugin modules, those with listeners alone included.
        broken_plugins: Plugins that failed to load.
        commands: Name -> the command of a plugin, and its distribution. If several provide a name, each one has the
            name `distribution/name`.
        presets: Name -> a preset of suites, and its distribution; names as of commands.
        manager: pluggy's manager; listeners are registered with it.
        muted: Whether events are not emitted. True in worker processes, whose main process emits them.
    """

    components: dict[str, dict[str, Component]] = field(default_factory=lambda: {kind: {} for kind in COMPONENT_TYPES})
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    clashes: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    modules: dict[str, list[Any]] = field(default_factory=dict)
    broken_plugins: list[BrokenPlugin] = field(default_factory=list)
    commands: dict[str, tuple[Command, str]] = field(default_factory=dict)
    presets: dict[str, tuple[Preset, str]] = field(default_factory=dict)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager("harness"))
    muted: bool = False
    _failed_listeners: set[int] = field(default_factory=set)
    _plugin_listeners: dict[int, PluginListener] = field(default_factory=dict)

    def add(self, component_type: str, name: str, component: Component, distribution: str) -> None:
        """Register a component.

        Raises:
            HarnessError: The declaration is invalid.
        """
        where = f"{distribution}: {component_type[:-1]} {name!r}"
        if not isinstance(component, Component):
            raise HarnessError(where, f"is a {type(component).__name__}", "return harness.Component objects")
        if not re.fullmatch(evaluation.NAME_PATTERN, name):
            raise HarnessError(where, "is not a valid name", "use letters, digits, dot, dash and underscore")
        if name in RESERVED_NAMES.get(component_type, {}):
            raise HarnessError(where, "has the name of a key of the core", "rename it")
        builtin = distribution == CORE_DISTRIBUTION
        _validate_declaration(component, where, CORE_OPTIONS.get(component_type, {}), builtin=builtin)
        names = self.components[component_type]
        holder = self.origins.get((component_type, name))
        if holder == distribution:
            raise HarnessError(where, "is provided twice by this distribution", "rename one of them")
        if holder is not None and holder != CORE_DISTRIBUTION:  # it loses the short name
            self._add_under(
                component_type, f"{holder}/{name}", names.pop(name), self.origins.pop((component_type, name))
            )
            self.clashes[component_type, name] = (f"{holder}/{name}",)
        if distribution != CORE_DISTRIBUTION and (holder is not None or (component_type, name) in self.clashes):
            long_name = f"{distribution}/{name}"
            self.clashes[component_type, name] = (*self.clashes.get((component_type, name), ()), long_name)
            self._add_under(component_type, long_name, component, distribution)
        else:
            self._add_under(component_type, name, component, distribution)

    def add_command(self, name: str, command: Command, distribution: str) -> None:
        """Register a command.

        Raises:
            HarnessError: The declaration is invalid.
        """
        _add_declaration(self.commands, name, command, Command, distribution)

    def add_preset(self, name: str, preset: Preset, distribution: str) -> None:
        """Register a preset of suites.

        Raises:
            HarnessError: The declaration is invalid.
        """
        _add_declaration(self.presets, name, preset, Preset, distribution)

    def _add_under(self, component_type: str, name: str, component: Component, distribution: str) -> None:
        self.components[component_type][name] = component
        self.origins[component_type, name] = distribution

    def remove_distribution(self, distribution: str) -> None:
        """Remove the components of a distribution. A short name that one other component lost is its own again."""
        self.commands = {name: entry for name, entry in self.commands.items() if entry[1] != distribution}
        self.presets = {name: entry for name, entry in self.presets.items() if entry[1] != distribution}
        for component_type, name in [key for key, origin in self.origins.items() if origin == distribution]:
            del self.components[component_type][name], self.origins[component_type, name]
        for (component_type, name), long_names in list(self.clashes.items()):
            remaining = tuple(long for long in long_names if long in self.components[component_type])
            if len(remaining) == 1 and name not in self.components[component_type]:
                (long_name,) = remaining
                component = self.components[component_type].pop(long_name)
                self._add_under(component_type, name, component, self.origins.pop((component_type, long_name)))
                remaining = ()
            self.clashes[component_type, name] = remaining
            if not remaining:
                del self.clashes[component_type, name]

    def aliases(self, component_type: str) -> dict[str, str]:
        """Return `distribution/name` -> the name under which the component is registered, where the two differ."""
        return {
            f"{self.origins[component_type, name]}/{name}": name
            for name in self.components[component_type]
            if "/" not in name
        }

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
        """Return the error for a name that no plugin provides, or that several provide."""
        if (component_type, name) in self.clashes:
            return HarnessError(where, *ambiguous_name_error(name, self.clashes[component_type, name]))
        hint = f"available: {', '.join(sorted(self.components[component_type]))}"
        near = get_close_matches(name, self.components[component_type], 1)
        if near:
            hint = f"did you mean {near[0]!r}?"
        elif self.broken_plugins:
            hint = f"a plugin that may provide it failed to load: {', '.join(map(str, self.broken_plugins))}"
        return HarnessError(where, f"no plugin provides the {component_type[:-1]} {name!r}", hint)

    def create(self, component_type: str, name: str, options: Mapping[str, Any]) -> Any:
        """Create a component from its own options. Options that the core adds to every component are not passed.

        Raises:
            HarnessError: The component is unknown, or its module cannot be imported.
        """
        component = self.get(component_type, name)
        identity = ComponentIdentity(component_type[:-1], name, self.origins[component_type, name])
        where = f"{identity}, {component.factory}"
        module, _, attribute = component.factory.partition(":")
        try:
            factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        except HarnessError:
            raise
        except (Exception, SystemExit) as error:
            what = f"cannot import {component.factory!r}: {describe_exception(error)}"
            raise HarnessError(str(identity), what, "reinstall or fix that plugin") from error
        try:
            instance = factory(**{key: value for key, value in options.items() if key in component.options})
            _require_interface(instance, component_type, where)
            object.__setattr__(instance, IDENTITY_ATTRIBUTE, identity)  # also of a frozen data class
        except (Exception, SystemExit) as error:
            if passes_unchanged(error) or is_own_os_error(identity, error):
                raise
            raise ComponentError(where, describe_exception(error)) from error
        return instance

    def isolate_listener(
        self,
        plugin: Any,
        name: str,
        time_limit: float = TIME_LIMIT,
        prepare: Callable[[Event], Event] | None = None,
    ) -> None:
        """Deliver events to a plugin's listener in a thread of its own, as read-only copies.

        Args:
            plugin: The registered plugin.
            name: What to call it in a warning.
            time_limit: Seconds that it may take for one event.
            prepare: Returns the copy of an event that the listener gets, see `PluginListener`.
        """
        self._plugin_listeners[id(plugin)] = PluginListener(name, plugin.harness_on_event, time_limit, prepare)

    def remove_listener(self, plugin: Any) -> None:
        """Unregister a listener; it gets no more events."""
        self.manager.unregister(plugin)
        self._plugin_listeners.pop(id(plugin), None)
        self._failed_listeners.discard(id(plugin))

    def emit(self, event: Event) -> None:
        """Send an event to every listener. A listener that fails is named once and gets no more events.

        A listener of a plugin gets a read-only copy, in a thread of its own.
        """
        if self.muted:
            return
        for implementation in self.manager.hook.harness_on_event.get_hookimpls():
            key = id(implementation.plugin)
            if key in self._failed_listeners:
                continue
            listener = self._plugin_listeners.get(key)
            failure = None
            if listener is not None:
                listener.send(event)
                failure = listener.failure
            else:
                try:
                    implementation.function(event)
                except Exception as error:
                    failure = describe_exception(error)
            if failure is not None:
                self._failed_listeners.add(key)
                text = f"the listener of {implementation.plugin_name} is ignored from now on: {failure}"
                self.emit(WarningRaised(stage_index=event.stage_index, text=text))


def ambiguous_name_error(name: str, long_names: Sequence[str]) -> tuple[str, str]:
    """Return what is wrong, and the remedy, if several plugins provide a name and none is built in."""
    return f"several plugins provide {name!r}", f"write {' or '.join(long_names)}"


def discover_plugins(entries: Iterable[tuple[str, EntryPoint]] | None = None) -> Registry:
    """Load all plugins and register their components.

    Args:
        entries: Pairs (distribution, entry point), for tests; None: those installed.
    """
    registry = Registry()
    registry.manager.add_hookspecs(hookspecs)
    for distribution, entry in installed_entry_points() if entries is None else entries:
        name = f"{distribution}:{entry.value}"
        if registry.manager.has_plugin(name):
            continue  # one module that the distribution names under several entry points
        before = set(sys.modules)
        try:
            with _slow_import_note(distribution):
                module = entry.load()
            _forbid_heavy_imports(before)
            _require_hook_marks(module, distribution)
            registry.manager.register(module, name=name)
            registry.manager.check_pending()
            registry.modules.setdefault(distribution, []).append(module)
            _register_components(registry, module, distribution)
            _forbid_heavy_imports(before)
        except (Exception, SystemExit) as error:
            if distribution == CORE_DISTRIBUTION:
                raise
            _unregister_plugin(registry, distribution, entry, error)
            continue
        if distribution != CORE_DISTRIBUTION and hasattr(module, "harness_on_event"):
            registry.isolate_listener(module, name)
    return registry


@contextlib.contextmanager
def _slow_import_note(distribution: str) -> Iterator[None]:
    """Name a plugin whose import takes longer than `SLOW_IMPORT_SECONDS`: it may never end."""

    def warn() -> None:
        text = f"the plugin {printable(distribution)} is still being imported after {SLOW_IMPORT_SECONDS:g} s"
        print(f"warning: {text}; without it: --disable-plugin {printable(distribution)}", file=sys.stderr, flush=True)

    timer = threading.Timer(SLOW_IMPORT_SECONDS, warn)
    timer.daemon = True
    if distribution != CORE_DISTRIBUTION:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _forbid_heavy_imports(modules_before: set[str]) -> None:
    heavy = sorted({name.partition(".")[0] for name in set(sys.modules) - modules_before} & set(HEAVY_PACKAGES))
    if heavy:
        raise ImportError(
            f"loading it imports {', '.join(heavy)}; import them in the module that Component.factory names"
        )


def _require_hook_marks(module: Any, distribution: str) -> None:
    """Refuse a function with the name of a hook that is not one: nothing would call it."""
    for name in vars(hookspecs):
        function = getattr(module, name, None)
        is_hook = name.startswith("harness_") and inspect.isfunction(function)
        if is_hook and not hasattr(function, "harness_impl"):
            where = f"{distribution}: {module.__name__}.{name}"
            raise HarnessError(where, "is not registered as a hook", "write @hookimpl above the function")


def _register_components(registry: Registry, module: Any, distribution: str) -> None:
    for kind in COMPONENT_TYPES:
        hook = getattr(registry.manager.hook, f"harness_{kind}")
        for implementation in hook.get_hookimpls():
            if implementation.plugin is module:
                for name, component in implementation.function().items():
                    registry.add(kind, name, component, distribution)
    if hasattr(module, "harness_commands"):
        for name, command in module.harness_commands().items():
            registry.add_command(name, command, distribution)
    if hasattr(module, "harness_presets"):
        for name, preset in module.harness_presets().items():
            registry.add_preset(name, preset, distribution)


def _add_declaration(
    declarations: dict[str, tuple[Any, str]], name: str, declaration: Any, kind: type, distribution: str
) -> None:
    """Add a command or a preset. If several distributions provide a name, each one is `distribution/name`."""
    where = f"{distribution}: {kind.__name__.lower()} {name!r}"
    if not isinstance(declaration, kind):
        hint = f"return harness.{kind.__name__} objects"
        raise HarnessError(where, f"is a {type(declaration).__name__}", hint)
    if not re.fullmatch(evaluation.NAME_PATTERN, name):
        raise HarnessError(where, "is not a valid name", "use letters, digits, dot, dash and underscore")
    known = declarations.pop(name, None)
    if known is not None:
        declarations[f"{known[1]}/{name}"] = known
    is_taken = any(long_name.endswith(f"/{name}") for long_name in declarations)
    declarations[f"{distribution}/{name}" if is_taken else name] = (declaration, distribution)


def _unregister_plugin(registry: Registry, distribution: str, entry: EntryPoint, error: BaseException) -> None:
    """Remove everything of a distribution whose module failed, and remember why."""
    registry.remove_distribution(distribution)
    for module in registry.modules.pop(distribution, []):
        registry.manager.unregister(module)
    known = registry.manager.get_plugin(f"{distribution}:{entry.value}")
    if known is not None:
        registry.manager.unregister(known)
    text = f"{error.where}: {error.what}" if isinstance(error, HarnessError) else describe_exception(error)
    registry.broken_plugins.append(BrokenPlugin(distribution, entry.value, shorten_words(redact_text(text))))


def _require_interface(instance: Any, component_type: str, where: str) -> None:
    interface = INTERFACES[component_type]
    if not isinstance(instance, interface):
        what = f"returned a {type(instance).__name__}, which does not extend harness.{interface.__name__}"
        raise ComponentError(where, what, f"write class {type(instance).__name__}(harness.{interface.__name__})")
    missing = missing_members(instance)
    if missing:
        raise ComponentError(where, f"does not define {', '.join(missing)}", f"see harness.{interface.__name__}")


def _validate_declaration(component: Component, where: str, core_keys: Mapping[str, Any], *, builtin: bool) -> None:
    if component.api not in SUPPORTED_API:  # first: another version may declare its options otherwise
        supported = (
            f"{SUPPORTED_API.start} to {SUPPORTED_API.stop - 1}" if len(SUPPORTED_API) > 1 else SUPPORTED_API.start
        )
        what = f"is written for version {component.api} of the plugin interface; this harness supports {supported}"
        raise HarnessError(where, what, "install a version of the plugin, or of harness, that fits")
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
    if not builtin:  # those of built-in components are validated in tests: it takes a quarter of `harness validate`
        validate_option_schemas(component, where)
    for name in component.required:
        if name not in component.options:
            raise HarnessError(where, f"the required option {name!r} is not declared", "add it to options")
    for key in component.typical_ranges:
        if "usual" not in training.TRAIN_KEYS.get(key.removeprefix("train."), {}):
            raise HarnessError(where, f"{key!r} has no typical range", "name a numeric setting of train")


def validate_option_schemas(component: Component, where: str) -> None:
    """Raise a HarnessError if the options of a component are not a JSON Schema, or a default does not match its own."""
    import jsonschema

    fragment = {"type": "object", "properties": dict(component.options), "required": list(component.required)}
    try:
        jsonschema.Draft7Validator.check_schema(fragment)
    except jsonschema.SchemaError as error:
        path = ".".join(map(str, error.absolute_path))
        what = f"its options are not a JSON Schema: {path}: {error.message}"
        raise HarnessError(where, what, "fix the declaration") from None
    for name, option in component.options.items():
        if "default" in option:
            invalid = next(jsonschema.Draft7Validator(option).iter_errors(option["default"]), None)
            if invalid is not None:
                raise HarnessError(where, f"the default of {name!r} is invalid: {invalid.message}", "fix the default")
