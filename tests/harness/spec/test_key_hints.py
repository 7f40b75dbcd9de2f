"""Hints for the keys of other tools name keys that exist."""

from __future__ import annotations

import json

import pytest
from support.paths import ROOT

from harness.spec.schema_errors import PEER_KEYS, hint_for_unknown_key

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
    assert hint_for_unknown_key("columns", ["path"], ["model"], SCHEMA) == ""
