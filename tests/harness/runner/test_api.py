"""Complete runs of a tiny model, from a spec to a report."""

from __future__ import annotations

import json

import pytest
from support.event_recorder import EventRecorder

from harness import events, registry
from harness.errors import HarnessError, RunError
from harness.hookspecs import hookimpl
from harness.runner import api, prepare
from harness.spec import schema, spec
from harness.terminal import row_preview

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")


def write(folder, name, rows):
    lines = [json.dumps({"instruction": question, "output": answer}) for question, answer in rows]
    (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture
def document(tmp_path, monkeypatch, tiny_model, tokenizer):
    """A spec over 13 + 13 rows that trains the tiny model for two steps, in tmp_path."""
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


@pytest.mark.slow
def test_run_emits_events_in_order_and_writes_all_files(document, tmp_path):
    listener = EventRecorder()
    report = start(document, tmp_path, listener)
    assert listener.classes() == [
        events.RunStarted, events.DataPrepared, events.SuitesEvaluated, events.StageStarted, events.StepLogged,
        events.StepLogged, events.SuitesEvaluated, events.StageFinished, events.RunFinished,
    ]  # fmt: skip
    (folder,) = (tmp_path / "runs").iterdir()
    steps = [json.loads(line) for line in (folder / "stages/domain/steps.jsonl").read_text().splitlines()]
    assert [one["step"] for one in steps] == [1, 2]
    assert {"loss", "learning_rate", "grad_norm", "penalty/ewc"} <= set(steps[0])
    assert json.loads((folder / "stages/domain/trained.json").read_text())["steps"] == 2
    assert json.loads((folder / "data.json").read_text())["shares"][0]["domain"]["rows"] == 1
    assert json.loads((folder / "spec.json").read_text())["train"]["scheduler"] == {"cosine": {"final": 0.0}}
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    assert len(json.loads((folder / "scores.json").read_text())["stages"]) == 2
    for stage in (0, 1):
        lines = (folder / f"predictions/domain-stage{stage}.jsonl").read_text().splitlines()
        assert len(lines) == report.changes[0].n
    phases = report.run_info["phases"]
    assert list(phases) == ["prepare", "load", "evaluate", "train", "write"]
    assert list(report.run_info["memory"]) == list(report.stages[1:])
    assert all(min(kinds["weights"], kinds["peak"]) > 0 for kinds in report.run_info["memory"].values())
    assert all(seconds > 0 for seconds in phases.values())
    assert sum(phases.values()) - phases["prepare"] == pytest.approx(report.run_info["seconds"], abs=0.5)
    assert (folder / "model/adapter_model.safetensors").exists()


@pytest.mark.slow
def test_same_spec_gives_same_numbers_and_another_seed_does_not(document, tmp_path):
    first, second = start(document, tmp_path), start(document, tmp_path)
    assert [one.after for one in first.changes] == [one.after for one in second.changes]
    other = start({**document, "seed": 1}, tmp_path)
    assert [one.after.value for one in first.changes] != [one.after.value for one in other.changes]


@pytest.mark.slow
def test_each_stage_is_evaluated_and_uses_its_own_settings(document, tmp_path):
    stages = [{"name": "a", "domain": ["domain"]}, {"name": "b", "general": ["general"], "train": {"epochs": 1}}]
    document["mode"] = {"continual": {"stages": stages}}
    listener = EventRecorder()
    report = start(document, tmp_path, listener)
    assert report.stages == ("base", "a", "b")
    started = {one.stage.name: one.steps for one in listener.events if isinstance(one, events.StageStarted)}
    assert started["a"] == 2
    assert started["b"] > 2, "a stage's own epochs count, not the common steps"
    assert all(len(values) == 3 for scores in report.scores_by_stage.values() for values in scores.values())


def test_failed_run_keeps_its_evaluations(document, tmp_path):
    document["train"] = {**document["train"], "learning_rate": 1e30, "steps": 4}
    document["mitigations"] = {}
    listener = EventRecorder()
    with pytest.raises(RunError, match="learning_rate"):
        start(document, tmp_path, listener)
    assert listener.classes()[-1] is events.RunFailed
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "predictions/domain-stage0.jsonl").exists()
    assert len(json.loads((folder / "scores.json").read_text())["stages"]) == 1


@pytest.mark.slow
def test_failing_listener_is_reported_once_and_run_continues(document, tmp_path):
    class Broken:
        @hookimpl
        def harness_on_event(self, event):
            raise ValueError("no")

    found = registry.discover_plugins()
    listener = EventRecorder()
    found.manager.register(Broken())
    found.manager.register(listener)
    (tmp_path / "spec.json").write_text(json.dumps(document))
    api.run(spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found)
    told = [one.text for one in listener.events if isinstance(one, events.WarningRaised)]
    assert len([text for text in told if "is ignored from now on" in text]) == 1
    assert listener.classes()[-1] is events.RunFinished


@pytest.mark.slow
def test_truncated_rows_are_reported_with_count_and_location(document, tmp_path):
    document["train"]["max_length"] = 48
    document["checks"] = {"untrained": 0.1}
    listener = EventRecorder()
    answer = "long " * 20
    write(
        tmp_path, "domain.jsonl", [(f"Where is {word}?", word) for word in WORDS] + [("x" * 60, "gone"), ("y", answer)]
    )
    write(tmp_path, "held.jsonl", [("And this?", answer), ("And that?", "short")])
    document["sources"]["domain"]["jsonl"]["held_out"] = 0
    document["sources"]["held"] = {"jsonl": {"path": "held.jsonl"}}
    document["evaluate"]["domain"]["source"] = "held"
    start(document, tmp_path, listener)
    warnings = listener.of(events.WarningRaised)
    told = " ".join(part for warning in warnings for part in (warning.text, *warning.rows))
    assert "sources.domain: 1 of its 15 training rows have no trained token within 48 tokens and are dropped" in told
    assert "domain.jsonl:14" in told
    assert "the suite 'domain' has 1 row(s) longer than max_length" in told


def test_held_out_row_refused_by_template_fails_before_folder_is_created(document, tmp_path):
    document["template"] = {"jinja": {"template": "{{ messages[0].content }}{{ eos_token }}"}}
    with pytest.raises(HarnessError) as caught:
        start(document, tmp_path)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "runs").exists()


def test_unreachable_mixture_is_refused_but_rows_can_be_previewed(document, tmp_path):
    document["mode"] = {"mixed": {"domain": ["domain"], "general": ["general"]}}
    document["sources"]["domain"]["jsonl"]["held_out"] = document["sources"]["general"]["jsonl"]["held_out"] = 0
    document["evaluate"] = {}
    write(tmp_path, "domain.jsonl", [(f"Where is number {n}?", f"{n}") for n in range(80)])
    write(tmp_path, "general.jsonl", [(f"Spell number {n}", f"{n}") for n in range(80)])
    document["mitigations"] = {"mixing": {"share": 0.2, "unit": "rows"}}
    document["train"] = {"steps": 1, "batch_size": 2}
    found = registry.discover_plugins()
    (tmp_path / "spec.json").write_text(json.dumps(document))
    with pytest.raises(HarnessError, match=r"stage ends within an epoch, after 2 sequences, .*set train.steps to 5"):
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
