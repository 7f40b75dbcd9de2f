"""Which plugins are installed, in which version and with which code."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.interfaces.component import COMPONENT_TYPES, CORE_DISTRIBUTION
from harness.registry import HEAVY_PACKAGES, RESERVED_NAMES, Registry
from harness.utils.file_digests import sha256_of_file


def describe_plugins(registry: Registry) -> dict[str, dict[str, Any]]:
    """Return the third-party distributions whose plugins are loaded, those with listeners alone included.

    Returns:
        Distribution -> `version` (None if unknown), `digest` (see `digest_code`) and `listens` (whether it receives the
        events of a run).
    """
    return {
        distribution: {
            "version": installed_version(distribution),
            "digest": digest_code(modules, _factories(registry, distribution)),
            "listens": any(hasattr(module, "harness_on_event") for module in modules),
        }
        for distribution, modules in sorted(registry.modules.items())
        if distribution != CORE_DISTRIBUTION
    }


def plugins_in_use(registry: Registry, spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the described plugins that a run uses: those with a component in its spec, and those that listen.

    Args:
        registry: The loaded plugins.
        spec: The spec with every default filled in.
    """
    names = set(component_names(spec))
    used = {origin for (kind, name), origin in registry.origins.items() if (kind, name) in names}
    described = describe_plugins(registry)
    return {name: about for name, about in described.items() if name in used or about["listens"]}


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _factories(registry: Registry, distribution: str) -> list[str]:
    """Return the factories of all components of a distribution, and the modules of its commands."""
    factories = [
        registry.components[kind][name].factory
        for (kind, name), origin in registry.origins.items()
        if origin == distribution
    ]
    return [*factories, *(command.module for command, origin in registry.commands.values() if origin == distribution)]


def digest_code(modules: Iterable[Any], factories: Iterable[str] = ()) -> str:
    """Return the SHA-256, in hex, of the code of a plugin: every Python file of its packages, with its path in them.

    Packages of the standard library, and those that harness itself depends on, are not part of it.

    Args:
        modules: The modules that entry points name.
        factories: The factories of the components, "package.module:factory". They are not imported.
    """
    names = [*(module.__name__ for module in modules), *(factory.partition(":")[0] for factory in factories)]
    packages = {name.partition(".")[0] for name in names}
    digest = hashlib.sha256()
    for package in sorted(packages - set(sys.stdlib_module_names) - {*HEAVY_PACKAGES, "harness"}):
        for path, file in _python_files(package):
            digest.update(f"{path}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def _python_files(package: str) -> list[tuple[str, Path]]:
    """Return (path, file) of each Python file of a top-level package or module, sorted by path."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a module without a specification, e.g. one that is built in code
        spec = None
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        file = Path(spec.origin or "")
        return [(file.name, file)] if file.suffix == ".py" and file.is_file() else []
    roots = [Path(root) for root in spec.submodule_search_locations]
    files = [(file.relative_to(root.parent).as_posix(), file) for root in roots for file in root.rglob("*.py")]
    return sorted(files)


def component_names(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (component type, name) of each component that a spec names."""
    suites = spec.get("evaluate", {}).values()
    stages = _stages_of_mode(spec)
    trains = [spec.get("train", {}), *_section_of_each(stages, "train")]
    by_type: dict[str, list[Mapping[str, Any]]] = {
        "templates": [spec.get("template", {}), *(suite.get("template") or {} for suite in suites)],
        "sources": list(spec.get("sources", {}).values()),
        "row_formats": [
            options["form"]
            for source in spec.get("sources", {}).values()
            for options in source.values()
            if isinstance(options.get("form"), Mapping)
        ],
        "modes": [spec.get("mode", {})],
        "mitigations": [
            spec.get("mitigations", {}),
            *_section_of_each(stages, "mitigations"),
        ],
        "metrics": [suite.get("metrics", {}) for suite in suites],
        "optimizers": [train.get("optimizer", {}) for train in trains],
        "schedulers": [train.get("scheduler", {}) for train in trains],
        "checks": [
            {name: spec["checks"][name] for name in spec.get("checks", {}) if name not in RESERVED_NAMES["checks"]}
        ],
        "trackers": [
            {name: options for name, options in spec.get("track", {}).items() if name not in RESERVED_NAMES["trackers"]}
        ],
    }
    assert by_type.keys() == set(COMPONENT_TYPES) - {"exporters"}, "a spec names no exporter"
    return [(kind, name) for kind, mappings in by_type.items() for mapping in mappings for name in mapping]


def _stages_of_mode(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the stages that the options of the mode list; a plugin's mode may have another option of that name."""
    options = [options for options in spec.get("mode", {}).values() if isinstance(options, Mapping)]
    lists = [stages for each in options if isinstance(stages := each.get("stages"), list | tuple)]
    return [stage for stages in lists for stage in stages if isinstance(stage, Mapping)]


def _section_of_each(stages: Iterable[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    return [section for stage in stages if isinstance(section := stage.get(key), Mapping)]
