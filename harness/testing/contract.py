"""The contract tests of components: for pytest, and for `harness plugins --check`.

A distribution tests its components in one line:

    from harness.testing.contract import contract_tests

    test_contract = contract_tests("harness-l2")
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.interfaces.component_example import ComponentExample
from harness.plugin_entry_points import normalize_name
from harness.registry import Registry, discover_plugins
from harness.testing.checks import declaration
from harness.testing.component_under_test import CheckFailed, CheckSkipped, ComponentUnderTest

Check = Callable[[ComponentUnderTest], None]
"""Raises `CheckFailed` with what is wrong. The first line of its docstring is what it claims."""

Examples = Mapping[str, Mapping[str, ComponentExample]]
"""Component type -> name -> example."""


@dataclass(frozen=True)
class ContractResult:
    """The result of one check of one component.

    Attributes:
        component_type: Component type, e.g. `metrics`.
        name: The component.
        claim: What was checked, as a sentence.
        status: `passed`, `failed` or `skipped`.
        reason: Why it failed or was skipped.
    """

    component_type: str
    name: str
    claim: str
    status: str
    reason: str = ""


def contract_tests(distribution: str, examples: Examples | None = None) -> Callable[..., None]:
    """Return a pytest test that runs every check on every component of a distribution.

    Args:
        distribution: The distribution, as installed.
        examples: Examples that replace those of the declarations: `{"metrics": {"name": ComponentExample(…)}}`.

    Raises:
        HarnessError: The distribution is not installed, or failed to load.
    """
    import pytest

    registry = discover_plugins()
    cases = [
        pytest.param(kind, name, check, id=f"{kind}-{name}-{check_id(check)}")
        for kind, name in find_components(registry, distribution)
        for check in checks_of(kind)
    ]

    @pytest.mark.parametrize(("kind", "name", "check"), cases)
    def test_contract(kind: str, name: str, check: Check, tmp_path: Path) -> None:
        example = (examples or {}).get(kind, {}).get(name) or registry.get(kind, name).example
        try:
            check(ComponentUnderTest(registry, kind, name, tmp_path, example))
        except CheckSkipped as skipped:
            pytest.skip(str(skipped))

    return test_contract


def run_checks(registry: Registry, name: str, folder: Path) -> Iterator[ContractResult]:
    """Yield the result of every check of one component, or of all of a distribution.

    Args:
        registry: The loaded plugins.
        name: A component or a distribution.
        folder: An empty folder for the files of the checks.

    Raises:
        HarnessError: No component or distribution has this name, or the distribution failed to load.
    """
    for index, (kind, component_name) in enumerate(find_components(registry, name)):
        for number, check in enumerate(checks_of(kind)):
            workspace = folder / f"{index}-{number}"
            workspace.mkdir()
            example = registry.get(kind, component_name).example
            status, reason = run_check(check, ComponentUnderTest(registry, kind, component_name, workspace, example))
            yield ContractResult(kind, component_name, claim(check), status, reason)


def run_check(check: Check, subject: ComponentUnderTest) -> tuple[str, str]:
    """Return the status of a check, and why it failed or was skipped."""
    from harness.interfaces.guard import describe_exception

    try:
        check(subject)
    except CheckSkipped as skipped:
        return "skipped", str(skipped)
    except CheckFailed as failed:
        return "failed", str(failed)
    except HarnessError as error:
        return "failed", " ".join(error.lines())
    except Exception as error:
        return "failed", describe_exception(error)
    return "passed", ""


def find_components(registry: Registry, name: str) -> list[tuple[str, str]]:
    """Return (component type, name) of the components that a component's or distribution's name refers to.

    Raises:
        HarnessError: There is none, or the distribution failed to load.
    """
    distribution = normalize_name(name)
    broken = [plugin for plugin in registry.broken_plugins if plugin.distribution == distribution]
    if broken:
        raise HarnessError(distribution, f"failed to load: {broken[0].module}: {broken[0].error}", "fix that module")
    components = [
        (kind, component_name)
        for kind, names in registry.components.items()
        for component_name in sorted(names)
        if registry.origins[kind, component_name] == distribution
        or name in (component_name, f"{registry.origins[kind, component_name]}/{component_name}")
    ]
    if not components:
        what = "no installed plugin distribution or component has this name"
        raise HarnessError(name, what, "list them: harness plugins")
    return components


def checks_of(kind: str) -> tuple[Check, ...]:
    """Return the checks of a component type, the general ones first."""
    module = importlib.import_module(f"harness.testing.checks.{kind[:-1]}")
    special: tuple[Check, ...] = module.CHECKS
    return (*declaration.CHECKS, *special)


def check_id(check: Check) -> str:
    """Return the short name of a check."""
    return check.__name__.removeprefix("check_")


def claim(check: Check) -> str:
    """Return what a check claims, as a sentence."""
    return (check.__doc__ or check_id(check)).splitlines()[0]
