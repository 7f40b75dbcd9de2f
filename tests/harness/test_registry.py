"""Plugins are discovered by one road; what is wrong with one is named and stays its own affair."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

from harness.errors import HarnessError
from harness.interfaces.component import Component
from harness.registry import CORE_DISTRIBUTION, HEAVY_PACKAGES, Registry, discover_plugins, installed_entry_points
from harness.types import Event

HOOK = """
from harness import Component, hookimpl

@hookimpl
def harness_metrics():
    return {"NAME": Component("Counts.", "collections:Counter")}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Makes a module and gives it as an entry of the distribution named."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def plugin(distribution, text, module=None):
        module = module or f"made_{distribution.replace('-', '_')}_{len(made)}"
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        made.append(module)
        return distribution, EntryPoint("metrics", module, "harness")

    yield plugin
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Installs a distribution, as metadata alone, with the entry points given."""
    monkeypatch.syspath_prepend(tmp_path)

    def distribution(name, entries):
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (folder / "entry_points.txt").write_text(entries, encoding="utf-8")

    return distribution


# -- what is installed ------------------------------------------------------------------------------------------------


def test_ours_come_first_then_the_others_by_name(distribution):
    distribution("a-first", "[harness]\nb = x\na = y\n")
    found = [(name, entry.name) for name, entry in installed_entry_points()]
    ours = [pair for pair in found if pair[0] == CORE_DISTRIBUTION]
    assert [name for _, name in ours] == ["metrics", "mitigations", "modes", "sources", "templates"]
    assert found[: len(ours)] == ours
    assert [pair for pair in found if pair[0] == "a-first"] == [("a-first", "a"), ("a-first", "b")]


def test_names_of_distributions_are_told_in_one_spelling(distribution):
    distribution("My_Plugin", "[harness]\nx = y\n")
    assert "my-plugin" in [name for name, _ in installed_entry_points()]


def test_entry_points_of_other_groups_are_left_alone(distribution):
    distribution("other", "[console_scripts]\nx = y:z\n\n[harness.more]\nx = y\n")
    assert "other" not in [name for name, _ in installed_entry_points()]


@pytest.mark.parametrize(("value", "seen"), [("1", False), ("", True), ("0", True)])
def test_third_parties_can_be_left_out(distribution, monkeypatch, value, seen):
    distribution("other", "[harness]\nx = y\n")
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", value)
    names = [name for name, _ in installed_entry_points()]
    assert ("other" in names) is seen
    assert CORE_DISTRIBUTION in names


# -- discovery --------------------------------------------------------------------------------------------------------


def test_a_component_is_found_with_the_distribution_that_brings_it(plugin):
    registry = discover_plugins([plugin("acme", HOOK.replace("NAME", "count"))])
    assert list(registry.components["metrics"]) == ["count"]
    assert registry.origins == {("metrics", "count"): "acme"}
    assert registry.broken_plugins == []


def test_a_module_named_under_two_entry_points_is_taken_once(plugin):
    name, entry = plugin("acme", HOOK.replace("NAME", "count"))
    again = EntryPoint("sources", entry.value, "harness")
    registry = discover_plugins([(name, entry), (name, again)])
    assert list(registry.components["metrics"]) == ["count"]
    assert registry.broken_plugins == []
    assert registry.manager.has_plugin(f"acme:{entry.value}")


@pytest.mark.parametrize("first", ["acme", "zeta"])
def test_a_name_taken_twice_stops_and_names_both_distributions(plugin, first):
    other = {"acme": "zeta", "zeta": "acme"}[first]
    entries = [plugin(one, HOOK.replace("NAME", "count")) for one in (first, other)]
    with pytest.raises(HarnessError) as caught:
        discover_plugins(entries)
    assert caught.value.exit_code == 2
    assert f"'{first}' and '{other}' both provide a metric 'count'" in caught.value.what


def test_one_name_may_stand_for_two_kinds(plugin):
    mode = HOOK.replace("harness_metrics", "harness_modes")
    registry = discover_plugins([plugin("acme", HOOK.replace("NAME", "x")), plugin("zeta", mode.replace("NAME", "x"))])
    assert registry.origins == {("metrics", "x"): "acme", ("modes", "x"): "zeta"}


BROKEN = {
    "raises at import": ("1 / 0", "ZeroDivisionError"),
    "leaves at import": ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    "imports what is not there": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "is no python": ("def", "SyntaxError"),
    "misspells a hook": (HOOK.replace("harness_metrics", "harness_metrix"), "unknown hook 'harness_metrix'"),
    "has a hook with arguments": (HOOK.replace("harness_metrics()", "harness_metrics(model)"), "model"),
    "raises when listed": (
        "from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    raise KeyError('x')",
        "KeyError",
    ),
    "leaves when listed": (
        "import sys\nfrom harness import hookimpl\n@hookimpl\ndef harness_modes():\n    sys.exit(3)",
        "SystemExit: 3",
    ),
    "returns a list": (
        "from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    return ['x']",
        "AttributeError",
    ),
    "returns nothing": ("from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    pass", "AttributeError"),
    "returns no component": (
        "from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    return {'x': 'y:z'}",
        "is a str",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_and_the_others_stay(plugin, kind):
    text, what = BROKEN[kind]
    bad = plugin("bad", text.replace("NAME", "lost"))
    registry = discover_plugins([bad, plugin("good", HOOK.replace("NAME", "count"))])
    assert list(registry.origins) == [("metrics", "count")]
    assert [(one.distribution, one.module) for one in registry.broken_plugins] == [("bad", bad[1].value)]
    assert what in registry.broken_plugins[0].error
    assert "\n" not in str(registry.broken_plugins[0])
    assert not registry.manager.has_plugin(f"bad:{bad[1].value}")


def test_nothing_of_a_plugin_stays_when_one_of_its_components_is_unsound(plugin):
    text = """
from harness import Component, hookimpl

@hookimpl
def harness_metrics():
    return {"good": Component("Counts.", "collections:Counter"), "bad": Component("Counts.", "collections")}

@hookimpl
def harness_on_event(event):
    raise AssertionError("a withdrawn plugin hears nothing")
"""
    registry = discover_plugins([plugin("acme", text)])
    assert registry.components["metrics"] == {}
    assert registry.origins == {}
    assert "write 'package.module:factory'" not in registry.broken_plugins[0].error
    assert "factory is 'collections'" in registry.broken_plugins[0].error
    registry.emit(Event("warning", data={"text": "x"}))


@pytest.mark.parametrize("heavy", ["pandas", "mlflow"])
@pytest.mark.parametrize("where", ["module", "hook"])
def test_a_plugin_that_imports_something_heavy_when_it_is_listed_is_refused(plugin, monkeypatch, heavy, where):
    plugin("stand-in", "", module=heavy)
    monkeypatch.setitem(sys.modules, heavy, types.ModuleType(heavy))
    monkeypatch.delitem(sys.modules, heavy)
    text = HOOK.replace("NAME", "count")
    text = (
        f"import {heavy}\n{text}"
        if where == "module"
        else text.replace("    return", f"    import {heavy}\n    return")
    )
    registry = discover_plugins([plugin("acme", text)])
    assert registry.components["metrics"] == {}
    assert f"loading it imports {heavy}" in registry.broken_plugins[0].error


def test_the_heavy_packages_are_those_of_the_import_budget():
    assert set(HEAVY_PACKAGES) == {
        "torch", "numpy", "pandas", "transformers", "trl", "peft", "datasets", "evaluate", "mlflow",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / 0", ZeroDivisionError),
        (HOOK.replace("return", "return 1 / 0,"), ZeroDivisionError),
        (HOOK.replace("collections:Counter", "collections"), HarnessError),
    ],
)
def test_a_broken_plugin_of_our_own_is_a_bug_and_is_raised(plugin, text, error):
    with pytest.raises(error):
        discover_plugins([plugin(CORE_DISTRIBUTION, text)])


# -- declarations -----------------------------------------------------------------------------------------------------

TEXT = {"type": "string", "description": "A text."}
UNSOUND = {
    "no schema": ({"options": {"x": {**TEXT, "type": "strin"}}}, "not a JSON Schema"),
    "an option that is no object": ({"options": {"x": True}}, "the option 'x' is True"),
    "no description": ({"options": {"x": {"type": "string", "default": ""}}}, "'x' has no description"),
    "no default and not required": ({"options": {"x": TEXT}}, "'x' has neither a default nor is required"),
    "a default of the wrong type": ({"options": {"x": {**TEXT, "default": 3}}}, "the default of 'x' is invalid"),
    "a default out of range": (
        {"options": {"x": {"type": "number", "minimum": 1, "default": 0, "description": "X."}}},
        "the default of 'x' is invalid",
    ),
    "a required option not declared": ({"required": ("x",)}, "'x' is not declared"),
    "no factory": ({"factory": "package.module"}, "factory is 'package.module'"),
    "a usual range of nothing": ({"typical_ranges": {"train.lerning_rate": (0, 1)}}, "'train.lerning_rate'"),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_an_unsound_declaration_is_refused_and_named(kind):
    given, what = UNSOUND[kind]
    with pytest.raises(HarnessError) as caught:
        Registry().add("metrics", "count", Component(**{"summary": "Counts.", "factory": "a:b", **given}), "acme")
    assert caught.value.where == "acme: metric 'count'"
    assert what in caught.value.what


@pytest.mark.parametrize("option", ["form", "columns", "limit", "held_out"])
def test_a_source_may_not_take_a_word_that_every_source_has(option):
    component = Component("Reads.", "a:b", {option: TEXT}, (option,))
    with pytest.raises(HarnessError, match="a key of the core"):
        Registry().add("sources", "mine", component, "acme")
    Registry().add("metrics", "mine", component, "acme")


def test_a_sound_declaration_is_taken():
    registry = Registry()
    options = {"x": TEXT, "y": {"type": ["number", "null"], "default": None, "description": "Y."}}
    component = Component("Counts.", "a:b", options, ("x",), {"train.learning_rate": (1e-4, 1e-3)})
    registry.add("metrics", "count", component, "acme")
    assert registry.get("metrics", "count") is component


# -- getting and making -----------------------------------------------------------------------------------------------


def test_an_unknown_name_gets_the_nearest(small_registry):
    with pytest.raises(HarnessError, match="did you mean 'overlap'"):
        small_registry.get("metrics", "overlapp")


def test_an_unknown_name_with_no_near_one_gets_all(small_registry):
    with pytest.raises(HarnessError) as caught:
        small_registry.get("modes", "xyz")
    assert caught.value.hint == "available: continual, domain, general, mixed"


def test_an_unknown_name_gets_the_broken_plugin_that_may_bring_it(plugin):
    registry = discover_plugins([plugin("bad", "1 / 0", module="made_bad")])
    with pytest.raises(HarnessError) as caught:
        registry.get("metrics", "mine")
    assert "bad (made_bad): ZeroDivisionError" in caught.value.hint


def test_a_factory_gets_its_own_options_and_not_those_of_the_core(small_registry, monkeypatch):
    module = types.ModuleType("made_source")
    module.Made = lambda **options: options
    monkeypatch.setitem(sys.modules, "made_source", module)
    small_registry.components["sources"]["lines"] = Component("R.", "made_source:Made", {"path": TEXT}, ("path",))
    made = small_registry.create("sources", "lines", {"path": "x", "limit": None, "held_out": 0, "form": "auto"})
    assert made == {"path": "x"}


@pytest.mark.parametrize(
    ("factory", "what"),
    [
        ("no_such_module:X", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("collections:NoSuchThing", "AttributeError"),
        ("made_bad_one:X", "ZeroDivisionError"),
    ],
)
def test_a_component_that_does_not_import_is_named_with_its_distribution(plugin, factory, what):
    plugin("bad", "1 / 0", module="made_bad_one")
    registry = Registry()
    registry.add("metrics", "count", Component("Counts.", factory), "acme")
    with pytest.raises(HarnessError) as caught:
        registry.create("metrics", "count", {})
    assert caught.value.where == "metric 'count' of acme"
    assert f"cannot import '{factory}': {what}" in caught.value.what


# -- listeners --------------------------------------------------------------------------------------------------------

LISTENER = """
from harness import hookimpl
heard = []

@hookimpl
def harness_on_event(event):
    heard.append(event)
    {then}
"""


def test_a_listener_that_fails_is_named_once_and_left_out(plugin):
    bad = plugin("bad", LISTENER.format(then="raise ValueError('full')"))
    good = plugin("good", LISTENER.format(then=""))
    registry = discover_plugins([bad, good])
    first, second = Event("stage_started", 1), Event("stage_finished", 1)
    registry.emit(first)
    registry.emit(second)
    assert sys.modules[bad[1].value].heard == [first]
    heard = sys.modules[good[1].value].heard
    assert [event for event in heard if event.type != "warning"] == [first, second]
    (warning,) = [event for event in heard if event.type == "warning"]
    assert "bad:" in warning.data["text"]
    assert "full" in warning.data["text"]


def test_an_interrupt_in_a_listener_is_not_swallowed(plugin):
    registry = discover_plugins([plugin("bad", LISTENER.format(then="raise KeyboardInterrupt"))])
    with pytest.raises(KeyboardInterrupt):
        registry.emit(Event("step"))
