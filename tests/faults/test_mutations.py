"""A seed gives the same faults everywhere, and what differs between two runs is found."""

from __future__ import annotations

import json
import random

from faults.inputs import mutate, mutate_bytes, paths
from faults.results import Section, differences, format_table, snapshot
from faults.workbench import SPECS, build_spec


def test_the_same_seed_mutates_equally_and_another_one_otherwise():
    document = build_spec("ewc")
    mutated = [json.dumps(mutate(document, random.Random(seed), ["a"])) for seed in (1, 1, 2)]
    assert mutated[0] == mutated[1] != mutated[2]
    assert document == build_spec("ewc"), "the document itself stays"
    assert mutate_bytes(b"abc" * 50, random.Random(3)) == mutate_bytes(b"abc" * 50, random.Random(3))


def test_every_value_of_a_document_has_a_path():
    assert list(paths({"a": [1, {"b": 2}]})) == [(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b")]


def test_specs_of_the_workbench_are_distinct():
    assert len({json.dumps(build_spec(name), sort_keys=True) for name in SPECS}) == len(SPECS)


def test_times_do_not_differ_but_losses_and_weights_do(tmp_path):
    for name, loss, weights in (("a", 1.0, b"w"), ("b", 1.0, b"w"), ("c", 2.0, b"x")):
        run = tmp_path / name
        (run / "model").mkdir(parents=True)
        (run / "steps.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "seconds": random.random()}) + "\n")
        (run / "model" / "model.safetensors").write_bytes(weights)
    a, b, c = (snapshot(tmp_path / name) for name in "abc")
    assert differences(a, b) == []
    assert differences(a, c) == ["model/model.safetensors", "steps.jsonl"]


def test_the_table_counts_tries_and_failures():
    section = Section("kills")
    section.add("equal")
    section.add("unequal", "a line")
    assert "| kills | 2 | 1 equal, 1 unequal | 1 |" in format_table([section])
