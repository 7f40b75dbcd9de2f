"""Presets of plugins: names, and how a spec's suites and sources are made of them."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.interfaces.preset import Preset, PresetSuite
from harness.registry import Registry, discover_plugins
from harness.spec.presets import expand_presets
from harness.spec.schema import compose_schema
from harness.spec.spec import load_spec

SUITES = {
    kind: PresetSuite(
        {"jsonl": {"path": f"pkg://acme/{kind}.jsonl"}},
        {"role": "general", "metrics": {"response_perplexity": {}}, "max_new_tokens": 8},
    )
    for kind in ("letters", "forms")
}
SPEC = {
    "name": "a",
    "model": {"path": "m"},
    "sources": {"s": {"jsonl": {"path": "s.jsonl"}}},
    "mode": {"domain": {"sources": ["s"]}},
    "evaluate": {
        "first": {"source": "s", "metrics": "rouge"},
        "office": "acme",
        "last": {"source": "s", "metrics": "rouge"},
    },
}


@pytest.fixture
def schema(monkeypatch):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    registry = discover_plugins()
    registry.add_preset("acme", Preset("Letters and forms.", SUITES), "acme")
    return compose_schema(registry)


def test_suites_of_a_preset_take_its_place_and_have_sources_of_their_names(schema):
    document = load_spec(SPEC, schema).document
    assert list(document["evaluate"]) == ["first", "office-letters", "office-forms", "last"]
    assert document["evaluate"]["office-forms"]["source"] == "office-forms"
    assert document["evaluate"]["office-forms"]["max_new_tokens"] == 8
    assert document["sources"]["office-forms"]["jsonl"]["path"] == "pkg://acme/forms.jsonl"


def test_keys_beside_a_preset_apply_to_each_suite_also_with_set(schema):
    given = {**SPEC, "evaluate": {"office": {"preset": "acme", "limit": 5}}}
    suites = load_spec(given, schema, ["evaluate.office.max_new_tokens=3"]).document["evaluate"]
    assert [(suite["limit"], suite["max_new_tokens"]) for suite in suites.values()] == [(5, 3), (5, 3)]


def test_a_filled_spec_is_loaded_without_the_preset(schema):
    filled = load_spec(SPEC, schema).document
    without = {**schema, "properties": {**schema["properties"]}}
    without["properties"]["evaluate"] = {**schema["properties"]["evaluate"], "presets": {}}
    assert load_spec(filled, without).document == filled


def test_a_document_without_presets_is_unchanged(schema):
    document = {**SPEC, "evaluate": {"first": {"source": "s", "metrics": {"rouge": {}}}}}
    assert expand_presets(document, schema, str) == document


def test_a_source_of_the_same_name_is_an_error_that_names_it(schema):
    given = {**SPEC, "sources": {**SPEC["sources"], "office-forms": {"jsonl": {"path": "x.jsonl"}}}}
    with pytest.raises(HarnessError, match=r"sources\.office-forms") as error:
        load_spec(given, schema)
    assert "adds 'office-forms', which exists" in str(error.value)


def test_presets_of_two_distributions_have_long_names():
    registry = Registry()
    for distribution in ("acme", "corp"):
        registry.add_preset("office", Preset("Office.", SUITES), distribution)
    assert set(registry.presets) == {"acme/office", "corp/office"}
    registry.remove_distribution("acme")
    assert set(registry.presets) == {"corp/office"}


@pytest.mark.parametrize(
    ("name", "preset", "message"),
    [("a b", Preset("X.", SUITES), "is not a valid name"), ("x", SUITES, "is a dict")],
)
def test_a_wrong_declaration_is_an_error(name, preset, message):
    with pytest.raises(HarnessError, match=message):
        Registry().add_preset(name, preset, "acme")
