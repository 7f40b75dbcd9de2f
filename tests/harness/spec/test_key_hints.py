"""Hints for the keys of other tools name keys that exist."""

from __future__ import annotations

import json

import pytest
from support.paths import ROOT

from harness.errors import HarnessError
from harness.registry import discover_plugins
from harness.spec.schema import compose_schema
from harness.spec.schema_errors import PEER_KEYS, hint_for_unknown_key
from harness.spec.spec import load_spec

SCHEMA = json.loads((ROOT / "specs" / "harness.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("place", sorted(set(PEER_KEYS.values())))
def test_every_key_that_a_hint_names_exists(place):
    node = SCHEMA
    for key in place.split("."):
        node = node["properties"][key]


@pytest.mark.parametrize("name", ["lr", "r", "lora_r", "per_device_train_batch_size", "gradient_accumulation_steps",
                                  "max_seq_length", "cutoff_len"])  # fmt: skip
def test_common_keys_of_other_tools_are_known(name):
    section, _, key = PEER_KEYS[name].rpartition(".")
    assert hint_for_unknown_key(name, [key], section.split("."), SCHEMA) == f"did you mean {key!r}?"
    assert hint_for_unknown_key(name, [], ["sources"], SCHEMA) == f"write it as {section}.{key}"


def test_no_other_tools_key_is_a_key_in_the_place_that_its_hint_names():
    for name, place in PEER_KEYS.items():
        node = SCHEMA
        for key in place.split(".")[:-1]:
            node = node["properties"][key]
        assert name not in node["properties"]


def test_a_key_with_many_places_gets_no_hint():
    assert hint_for_unknown_key("source", ["path"], ["model"], SCHEMA) == ""


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ('mode.mixed.domain="tickets"', 'write ["tickets"]: sources of the domain'),
        ('evaluate.tickets.metrics=["rouge", "chrf"]', 'write {"rouge": {}, "chrf": {}}: '),
        ('mitigations=["lora"]', 'write {"lora": {}}: '),
        ('gate={"score": "a"}', 'write [{"score": "a"}]: '),
        ('model="tiny"', 'write {"path": "tiny"}: '),
        ('train.epochs="3"', "write 3: "),
        ('train.epochs="nan"', "write a number: "),
        ('arms={"seeds": "0"}', "write 0: "),
        ("checks.contamination=false", "write null: "),
        ("train=3", 'write an object, e.g. {"epochs": 2, "learning_rate": 0.0001}: '),
        ('sources.tickets="data/tickets.CSV"', 'write {"csv": {"path": "data/tickets.CSV"}}'),
        ('sources.tickets="tickets.ndjson"', 'write {"jsonl": {"path": "tickets.ndjson"}}'),
        ('sources.tickets="tickets.docx"', "installed: "),
    ],
)
def test_the_remedy_for_a_wrong_shape_is_the_value_in_the_right_shape(override, remedy):
    document = {
        "name": "tickets",
        "model": {"path": "tiny"},
        "template": "chatml",
        "sources": {"tickets": {"csv": {"path": "tickets.csv"}}},
        "mode": {"mixed": {"domain": ["tickets"], "general": ["tickets"]}},
        "evaluate": {"tickets": {"source": "tickets", "metrics": {"rouge": {}}}},
    }
    with pytest.raises(HarnessError) as caught:
        load_spec(document, compose_schema(discover_plugins()), [override])
    assert f"; {remedy}" in str(caught.value)
