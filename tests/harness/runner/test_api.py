"""The whole way, from a spec to a report, with a tiny model made in code."""

from __future__ import annotations

import json

import pytest

from harness import registry
from harness.errors import HarnessError, RunError
from harness.hookspecs import hookimpl
from harness.runner import api, prepare
from harness.spec import schema, spec
from harness.terminal import row_preview
from harness.types import Event

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")


class Listener:
    def __init__(self):
        self.events: list[Event] = []

    @hookimpl
    def harness_on_event(self, event):
        self.events.append(event)

    def kinds(self):
        return [one.type for one in self.events if one.type not in ("progress", "warning")]


def write(folder, name, rows):
    lines = [json.dumps({"instruction": question, "output": answer}) for question, answer in rows]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def document(tmp_path, monkeypatch, tiny_model, tokenizer):
    """A spec over 13 + 13 rows that trains the tiny model for two updates; runs in tmp_path."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    write(tmp_path, "domain.jsonl", [(f"Where is {word}?", f"{word} is here") for word in WORDS])
    write(tmp_path, "general.jsonl", [(f"Spell {word}", word) for word in WORDS])
    source = {"jsonl": {"path": "domain.jsonl", "held_out": 0.3}}
    general = {"jsonl": {"path": "general.jsonl", "held_out": 0.3}}
    metrics = {"response_perplexity": {}, "chrf": {}}
    return {
        "name": "tiny",
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {"domain": source, "general": general},
        "mode": {"domain": {"sources": ["domain"]}},
        "mitigations": {"lora": {"rank": 2}, "ewc": {"source": "general", "samples": 2}},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.01},
        "evaluate": {
            "domain": {"source": "domain", "metrics": metrics, "max_new_tokens": 4},
            "general": {"source": "general", "role": "general", "metrics": {"response_perplexity": {}}},
        },
        "track": {"enabled": False},
    }


def start(document, tmp_path, listener=None):
    (tmp_path / "spec.json").write_text(json.dumps(document))
    found = registry.discover_plugins()
    if listener is not None:
        found.manager.register(listener)
    return api.run(spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found)


def test_a_run_tells_what_happens_in_order_and_leaves_everything_in_its_folder(document, tmp_path):
    listener = Listener()
    report = start(document, tmp_path, listener)
    assert listener.kinds() == [
        "run_started", "data", "evaluated", "stage_started", "step", "step", "evaluated", "stage_finished",
        "run_finished",
    ]  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    steps = [json.loads(line) for line in (folder / "stages/domain/steps.jsonl").read_text().splitlines()]
    assert [one["step"] for one in steps] == [1, 2]
    assert {"loss", "learning_rate", "grad_norm", "penalty/ewc"} <= set(steps[0])
    assert json.loads((folder / "stages/domain/trained.json").read_text())["steps"] == 2
    assert json.loads((folder / "data.json").read_text())["shares"][0]["domain"]["rows"] == 1
    assert json.loads((folder / "spec.json").read_text())["train"]["scheduler"] == "cosine"
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    assert len(json.loads((folder / "scores.json").read_text())["stages"]) == 2
    for stage in (0, 1):
        lines = (folder / f"predictions/domain-stage{stage}.jsonl").read_text().splitlines()
        assert len(lines) == 1 + report.changes[0].n  # a header and the items
    assert (folder / "model/adapter_model.safetensors").exists()


def test_the_same_spec_gives_the_same_numbers_and_another_seed_does_not(document, tmp_path):
    first, second = start(document, tmp_path), start(document, tmp_path)
    assert [one.after for one in first.changes] == [one.after for one in second.changes]
    other = start({**document, "seed": 1}, tmp_path)
    assert [one.after.value for one in first.changes] != [one.after.value for one in other.changes]


def test_stages_are_evaluated_one_after_the_other_and_keep_their_own_settings(document, tmp_path):
    stages = [{"name": "a", "domain": ["domain"]}, {"name": "b", "general": ["general"], "train": {"epochs": 1}}]
    document["mode"] = {"continual": {"stages": stages}}
    listener = Listener()
    report = start(document, tmp_path, listener)
    assert report.stages == ("base", "a", "b")
    started = {one.data["stage"].name: one.data["steps"] for one in listener.events if one.type == "stage_started"}
    assert started["a"] == 2
    assert started["b"] > 2, "a stage's own epochs count, not the common steps"
    assert all(len(values) == 3 for scores in report.scores_by_stage.values() for values in scores.values())


def test_what_a_run_measured_before_it_failed_stays_in_its_folder(document, tmp_path):
    document["train"] = {**document["train"], "learning_rate": 1e30, "steps": 4}
    document["mitigations"] = {}
    listener = Listener()
    with pytest.raises(RunError, match="learning_rate"):
        start(document, tmp_path, listener)
    assert listener.kinds()[-1] == "run_failed"
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "predictions/domain-stage0.jsonl").exists()
    assert len(json.loads((folder / "scores.json").read_text())["stages"]) == 1


def test_a_listener_that_fails_is_named_once_and_the_run_goes_on(document, tmp_path):
    class Broken:
        @hookimpl
        def harness_on_event(self, event):
            raise ValueError("no")

    found = registry.discover_plugins()
    listener = Listener()
    found.manager.register(Broken())
    found.manager.register(listener)
    (tmp_path / "spec.json").write_text(json.dumps(document))
    api.run(spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found)
    told = [one.data["text"] for one in listener.events if one.type == "warning"]
    assert len([text for text in told if "failed and is ignored" in text]) == 1
    assert listener.kinds()[-1] == "run_finished"


def test_rows_that_truncation_touches_are_told_by_count_and_place(document, tmp_path):
    document["train"]["max_length"] = 48
    document["checks"] = {"untrained": 0.1}
    listener = Listener()
    answer = "long " * 20
    write(
        tmp_path, "domain.jsonl", [(f"Where is {word}?", word) for word in WORDS] + [("x" * 60, "gone"), ("y", answer)]
    )
    write(tmp_path, "held.jsonl", [("And this?", answer), ("And that?", "short")])
    document["sources"]["domain"]["jsonl"]["held_out"] = 0
    document["sources"]["held"] = {"jsonl": {"path": "held.jsonl"}}
    document["evaluate"]["domain"]["source"] = "held"
    start(document, tmp_path, listener)
    warnings = [one.data for one in listener.events if one.type == "warning"]
    told = " ".join(part for one in warnings for part in (one["text"], *one.get("rows", ())))
    assert "sources.domain: 1 of its 15 training rows have no trained token within 48 tokens and are dropped" in told
    assert "domain.jsonl:14" in told
    assert "the suite 'domain' has 1 row(s) longer than max_length" in told


def test_a_held_out_row_that_the_template_refuses_stops_the_run_before_a_folder_is_made(document, tmp_path):
    document["template"] = {"jinja": {"template": "{{ messages[0].content }}{{ eos_token }}"}}
    with pytest.raises(HarnessError) as caught:
        start(document, tmp_path)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_a_mixture_that_a_short_run_cannot_have_is_refused_and_rows_can_still_be_looked_at(document, tmp_path):
    document["mode"] = {"mixed": {"domain": ["domain"], "general": ["general"]}}
    document["sources"]["domain"]["jsonl"]["held_out"] = document["sources"]["general"]["jsonl"]["held_out"] = 0
    document["evaluate"] = {}
    write(tmp_path, "domain.jsonl", [(f"Where is number {n}?", f"{n}") for n in range(80)])
    write(tmp_path, "general.jsonl", [(f"Spell number {n}", f"{n}") for n in range(80)])
    document["mitigations"] = {"mixing": {"share": 0.2, "unit": "rows"}}
    document["train"] = {"steps": 1, "batch_size": 2}
    found = registry.discover_plugins()
    (tmp_path / "spec.json").write_text(json.dumps(document))
    with pytest.raises(HarnessError, match=r"it ends within an epoch, after 2 slots, .*train.steps 5 will do"):
        prepare.prepare_run(spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found)
    document["train"]["steps"] = 5
    (tmp_path / "spec.json").write_text(json.dumps(document))
    (stage,) = prepare.prepare_run(
        spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found
    ).data.stages
    assert stage.shares["general"]["rows"] == 0.2

    document["mitigations"]["mixing"]["share"] = 0.9
    (tmp_path / "spec.json").write_text(json.dumps(document))
    read = spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found))
    with pytest.raises(HarnessError, match="cannot be met"):
        prepare.prepare_run(read, found)
    assert row_preview.preview_rows(read, found, "domain", 1, plain=True)
