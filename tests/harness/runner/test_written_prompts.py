"""Rows whose prompts the base model writes too: trained, recorded, filtered, and the same after a resumption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import hookimpl, registry
from harness.evaluation.written_responses import PromptRowsOfModel
from harness.events import RowsWritten
from harness.runner import api
from harness.spec import schema, spec
from harness.types import WrittenPrompt

WRITING = {"prompts": 40, "max_new_tokens": 60, "max_repetition": 1.0, "min_log_probability": None}


def self_written(desk, writing=(), **changes):
    """A spec of one epoch that mixes in 4 rows which the base model writes alone."""
    mixing = {
        "share": 4 / 15,
        "unit": "rows",
        "upsample": True,
        "prompts": "model",
        "writing": {**WRITING, **dict(writing)},
    }
    mode = {"mixed": {"domain": ["domain"], "general": ["general"]}}
    document = desk.document(mode=mode, mitigations={"mixing": mixing}, **changes)
    document["train"] = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "max_length": 125}
    return document


def read_lines(file: Path):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_base_model_writes_prompts_and_answers_which_are_trained(desk, listener):
    recorder = listener()
    folder = desk.start(self_written(desk), recorder)
    rows = read_lines(folder / "written" / "mixing" / "general.jsonl")
    rejected = read_lines(folder / "written" / "mixing" / "general.rejected.jsonl")
    (event,) = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert event.prompts == len(rows) + len(rejected) == 40
    assert event.rows == len(rows) > 0
    assert event.unchanged == 0
    assert sum(event.rejected.values()) == len(rejected)
    assert "a prompt not ended within 60 tokens" in event.rejected
    prompts = {row["messages"][0]["content"] for row in rows}
    assert len(prompts) == len(rows)
    assert prompts.isdisjoint(row["instruction"] for row in read_lines(desk.folder / "general.jsonl"))
    data = json.loads((folder / "data.json").read_text())
    assert data["written"][0]["prompts"] == 40
    assert data["written"][0]["rejected"] == event.rejected
    assert data["shares"][0]["general"]["rows"] == pytest.approx(4 / 15)


@pytest.mark.slow
def test_a_resumed_run_reads_the_stored_rows_and_equals_the_whole_run(desk, same, monkeypatch):
    document = self_written(desk)
    document["train"]["save_steps"] = 2
    whole = desk.start(document)

    class Stopper:
        @hookimpl
        def harness_on_event(self, event):
            if type(event).__name__ == "StepLogged" and event.step == 3:
                raise KeyboardInterrupt

    found = registry.discover_plugins()
    found.manager.register(Stopper())
    file = desk.write(document)
    with pytest.raises(KeyboardInterrupt):
        api.run(spec.load_spec(file, schema.compose_schema(found)), found)
    interrupted = desk.newest()
    name = Path("written") / "mixing" / "general.jsonl"
    assert (interrupted / name).read_text() == (whole / name).read_text()

    def refuse(*arguments, **settings):
        raise AssertionError("the model writes again")

    monkeypatch.setattr(PromptRowsOfModel, "write_prompts", refuse)
    monkeypatch.setattr(PromptRowsOfModel, "write_responses", refuse)
    desk.resume(interrupted)
    same(whole, interrupted)


@pytest.mark.slow
def test_a_prompt_of_a_suite_is_not_trained(desk, listener, monkeypatch):
    real = PromptRowsOfModel.write_prompts

    def write_prompts(self, model, count, **settings):
        yield from real(self, model, count, **settings)
        for row in read_lines(desk.folder / "general.jsonl"):
            yield WrittenPrompt(f"{row['instruction']}", "stop", 9, -1.0)

    monkeypatch.setattr(PromptRowsOfModel, "write_prompts", write_prompts)
    monkeypatch.setattr("harness_mitigations.response_writer.MIN_PROMPT_WORDS", 1)
    recorder = listener()
    folder = desk.start(self_written(desk), recorder)
    (event,) = [event for event in recorder.events if isinstance(event, RowsWritten)]
    rejected = read_lines(folder / "written" / "mixing" / "general.rejected.jsonl")
    assert event.rejected["the prompt of a suite"] > 0
    assert event.rejected["the prompt of a suite"] == [row["rejected"] for row in rejected].count(
        "the prompt of a suite"
    )


def test_check_and_plan_list_prompts_and_responses_as_not_yet_written(desk, capsys):
    file = desk.write(self_written(desk))
    assert desk.command("check", file) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "not yet written: the prompts and responses of general (mixing)" in output
    kl = {"source": "general", "prompts": "model", "writing": WRITING}
    assert desk.command("plan", desk.write(desk.document(mitigations={"kl": kl}))) == 0
    assert "the prompts and responses of general (kl), not yet written" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_divergence_is_computed_on_rows_that_the_model_wrote_alone(desk, listener):
    recorder = listener()
    kl = {"source": "general", "rows": 3, "prompts": "model", "writing": WRITING}
    document = desk.document(mitigations={"kl": kl})
    document["train"]["max_length"] = 125
    folder = desk.start(document, recorder)
    (event,) = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert (event.mitigation, event.prompts, event.shares) == ("kl", 40, {})
    steps = [step["penalty/kl"] for step in read_lines(folder / "stages" / "domain" / "steps.jsonl")]
    assert abs(steps[0]) < 1e-6 < steps[1]


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_model_without_a_chat_template_is_refused_before_it_is_loaded(desk, untrained, capsys, command):
    bare = desk.folder / "bare"
    if not bare.exists():
        bare.mkdir()
        for file in untrained.iterdir():
            if file.name not in ("chat_template.jinja", "tokenizer_config.json"):
                (bare / file.name).symlink_to(file)
        config = json.loads((untrained / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (bare / "tokenizer_config.json").write_text(json.dumps(config))
    file = desk.write(self_written(desk, model={"path": "./bare"}))
    assert desk.command(command, file) == 2
    message = capsys.readouterr().err
    assert "mitigations.mixing: the model's tokenizer has no chat template" in message
    assert ".json:1:" in message
    assert 'set prompts of mixing to "data"' in " ".join(message.split())
    assert "Traceback" not in message


def test_prompts_at_temperature_0_are_refused(desk, capsys):
    assert desk.command("validate", desk.write(self_written(desk, {"temperature": 0}))) == 2
    assert "mitigations.mixing.writing.temperature: at 0 the model writes one prompt only" in capsys.readouterr().err
