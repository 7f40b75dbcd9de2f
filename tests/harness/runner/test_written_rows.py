"""Rows that a model writes before they are mixed: recorded, verified, cached, and the same after a resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import ClassVar

import pytest
from harness_mitigations.kl import GeneralKl

from harness import (
    Component,
    Example,
    InvalidRecord,
    Message,
    Mitigation,
    StageSource,
    WrittenResponse,
    hookimpl,
    registry,
)
from harness.evaluation.written_responses import PromptRowsOfModel
from harness.events import RowsWritten
from harness.runner import api, rows_to_write
from harness.spec import schema, spec
from harness.spec.plan import build_plan

WRITING = {"max_new_tokens": 90, "temperature": 1.0, "max_repetition": 1.0}
MIXED = {"mixed": {"domain": ["domain"], "general": ["general"]}}


def self_written(desk, share=4 / 15, **changes):
    """A spec of one epoch that mixes general prompts, with the base model's answers, into 11 rows."""
    mixing = {"share": share, "unit": "rows", "upsample": True, "answers": "model", "writing": WRITING}
    document = desk.document(mode=MIXED, mitigations={"mixing": mixing}, **changes)
    document["train"] = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "max_length": 64}
    return document


def with_kl_on_answers(desk, kl=(), **changes):
    """A spec of two stages with the divergence on the base model's answers to the general prompts."""
    options = {"source": "general", "rows": 3, "answers": "model", "writing": WRITING, **dict(kl)}
    mitigations = {"kl": options, **changes.pop("mitigations", {})}
    return desk.continual(mitigations=mitigations, **changes)


def interrupt(desk, document, stage_index, step):
    """Run a spec until a step of a stage, and return the run's folder."""

    class Stopper:
        @hookimpl
        def harness_on_event(self, event):
            if type(event).__name__ == "StepLogged" and (event.stage_index, event.step) == (stage_index, step):
                raise KeyboardInterrupt

    file = desk.write(document)
    found = registry.discover_plugins()
    found.manager.register(Stopper())
    with pytest.raises(KeyboardInterrupt):
        api.run(spec.load_spec(file, schema.compose_schema(found)), found)
    return desk.newest()


def refuse_to_write(self, model, **settings):
    raise AssertionError("the model writes rows again")


def read_lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class Shouter(Mitigation):
    """Writes each prompt in capitals, and mixes it in; every third row is rejected."""

    calls: ClassVar[list[str]] = []
    generates_with = "current"

    def __init__(self, own):
        self.unmixed_sources = ("general",) if own else ()
        self.own = own

    def transform_stages(self, stages):
        if self.own:
            return stages
        part = StageSource("general", "general", written_by="shouter")
        return tuple(replace(stage, sources=(*stage.sources, part)) for stage in stages)

    def generate_rows(self, stage, model, prompts, *, seed):
        assert not model.training
        self.calls.append(stage.name)
        for index, example in enumerate(prompts.examples):
            question = example.messages[-2].content
            if index % 3 == 2:
                yield InvalidRecord(example.location, "a third one", raw=question)
            else:
                yield replace(example, messages=(*example.messages[:-1], Message("assistant", question.upper())))

    def on_stage_start(self, stage, model, rows, *, seed):
        self.rows = rows


class OneForAll(Shouter):
    """Writes something that is not a conversation."""

    def generate_rows(self, stage, model, prompts, *, seed):
        yield Example("0", (Message("user", "only a question"),), "here")


@pytest.fixture
def with_shouter(monkeypatch):
    """Registers the mitigation `shouter` in every registry."""
    real = registry.discover_plugins

    def discover(*arguments):
        found = real(*arguments)
        options = {"own": {"type": "boolean", "default": False, "description": "Whether it keeps the rows."}}
        component = Component("Shouts.", f"{__name__}:create_shouter", options)
        found.add("mitigations", "shouter", component, "harness-shouter")
        return found

    monkeypatch.setattr(registry, "discover_plugins", discover)
    Shouter.calls.clear()
    monkeypatch.setitem(
        __import__("sys").modules, __name__, __import__("types").SimpleNamespace(create_shouter=Shouter)
    )
    return Shouter


def test_the_base_model_answers_the_general_prompts_which_are_trained(desk, listener):
    recorder = listener()
    folder = desk.start(self_written(desk), recorder)
    rows = read_lines(folder / "written" / "mixing" / "general.jsonl")
    rejected = read_lines(folder / "written" / "mixing" / "general.rejected.jsonl")
    prompts = read_lines(desk.folder / "general.jsonl")
    (event,) = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert event.prompts == len(rows) + len(rejected) < len(prompts)  # some are held out
    assert event.rows == len(rows) > 0
    assert sum(event.rejected.values()) == len(rejected)
    answers = {row["output"] for row in prompts}
    assert all(row["messages"][-1]["content"] not in answers for row in rows)
    assert all(row["messages"][0]["content"].startswith("Spell") for row in rows)
    data = json.loads((folder / "data.json").read_text())
    assert data["written"][0]["rows"] == len(rows)
    assert data["shares"][0] == event.shares
    assert data["shares"][0]["general"]["rows"] == pytest.approx(4 / 15)


@pytest.mark.slow
def test_written_rows_are_the_same_in_every_run_and_come_from_the_cache(desk, listener, same, monkeypatch, tmp_path):
    first, second, third = listener(), listener(), listener()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setenv("HARNESS_EVALUATION_CACHE", "1")
    folders = [desk.start(self_written(desk, seed=3), first), desk.start(self_written(desk, seed=3), second)]
    monkeypatch.setenv("HARNESS_EVALUATION_CACHE", "0")
    folders.append(desk.start(self_written(desk, seed=3), third))
    cached = [
        event.cached
        for recorder in (first, second, third)
        for event in recorder.events
        if isinstance(event, RowsWritten)
    ]
    assert cached == [False, True, False]
    texts = {(folder / "written" / "mixing" / "general.jsonl").read_text() for folder in folders}
    assert len(texts) == 1
    same(folders[0], folders[2])


@pytest.mark.slow
def test_the_share_does_not_change_what_is_written(desk):
    folders = [desk.start(self_written(desk, share)) for share in (4 / 15, 3 / 14)]
    first, second = ((folder / "written" / "mixing" / "general.jsonl").read_text() for folder in folders)
    assert first == second


@pytest.mark.slow
def test_prompts_limits_how_many_are_answered(desk, listener):
    document = self_written(desk, 1 / 12)
    document["mitigations"]["mixing"]["writing"] = {**WRITING, "prompts": 5}
    recorder = listener()
    desk.start(document, recorder)
    (event,) = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert event.prompts == 5


def mixing_in_two_stages(desk, of_the_second):
    """A spec of two stages that mix in written rows. of_the_second: the options of `mixing` in the second stage."""
    mixing = {"share": 4 / 15, "unit": "rows", "source": "general", "upsample": True, "answers": "model"}
    document = desk.continual(
        {"mitigations": {"mixing": of_the_second}}, mitigations={"mixing": {**mixing, "writing": WRITING}}
    )
    document["train"] = {"epochs": 1, "batch_size": 2, "learning_rate": 0.01, "max_length": 64}
    return document


@pytest.mark.parametrize(
    ("of_the_second", "folder"),
    [
        ({}, "written"),
        ({"share": 0.2}, "written"),
        ({"writing": {**WRITING, "prompts": 4}}, "stages/b/written"),
        ({"writing": {**WRITING, "temperature": 0.5}}, "stages/b/written"),
    ],
)
def test_rows_of_the_base_model_have_a_record_for_each_of_their_settings(desk, of_the_second, folder):
    found = registry.discover_plugins()
    loaded = spec.load_spec(desk.write(mixing_in_two_stages(desk, of_the_second)), schema.compose_schema(found))
    todo = rows_to_write.list_rows_to_write(build_plan(loaded, found), found)
    assert [task.folder for task in todo] == ["written", folder]


@pytest.mark.slow
def test_a_stage_with_other_settings_trains_on_its_own_rows(desk, listener, monkeypatch):
    calls, real = [], rows_to_write.list_rows_to_write
    monkeypatch.setattr(rows_to_write, "list_rows_to_write", lambda *given: calls.append(given) or real(*given))
    recorder = listener()
    folder = desk.start(mixing_in_two_stages(desk, {"share": 0.25, "writing": {**WRITING, "prompts": 4}}), recorder)
    first, second = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert second.prompts == 4 < first.prompts
    rows = [read_lines(folder / place / "mixing" / "general.jsonl") for place in ("written", "stages/b/written")]
    assert [len(lines) for lines in rows] == [first.rows, second.rows]
    assert len(calls) == 1


def test_without_a_usable_response_the_run_fails_with_the_reasons(desk, capsys):
    document = self_written(desk)
    document["mitigations"]["mixing"]["writing"] = {**WRITING, "max_new_tokens": 1}
    assert desk.command("run", desk.write(document)) == 1
    output = capsys.readouterr()
    message = output.err
    assert "the model wrote no row of 'general' that can be trained on" in message
    assert "not ended within 1 tokens" in message
    assert "harness run --resume" in " ".join(output.out.split())


def test_check_and_plan_list_them_as_not_yet_written(desk, capsys):
    file = desk.write(self_written(desk))
    assert desk.command("check", file) == 0
    assert "not yet written: the responses of general (mixing)" in " ".join(capsys.readouterr().out.split())
    assert desk.command("plan", file) == 0
    assert "not yet written" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mitigation_lets_the_current_model_write_before_each_stage(desk, listener, with_shouter):
    recorder = listener()
    folder = desk.start(desk.continual(mitigations={"shouter": {}}), recorder)
    assert with_shouter.calls == ["a", "b"]
    written = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert [(event.stage_index, event.model) for event in written] == [(1, "current"), (2, "current")]
    assert written[0].rejected == {"a third one": 2}
    rows = read_lines(folder / "stages" / "b" / "written" / "shouter" / "general.jsonl")
    assert all(row["messages"][-1]["content"].startswith("SPELL") for row in rows)


@pytest.mark.slow
def test_a_resumed_run_reads_what_was_written(desk, with_shouter, listener, same):
    document = desk.continual(mitigations={"shouter": {}})
    whole = desk.start(document)

    interrupted = interrupt(desk, document, 2, 3)
    with_shouter.calls.clear()
    desk.resume(interrupted)
    assert with_shouter.calls == []
    same(whole, interrupted)


def test_a_mitigation_can_keep_written_rows_for_itself(desk, with_shouter, monkeypatch):
    seen = []
    monkeypatch.setattr(Shouter, "on_stage_start", lambda self, stage, model, rows, *, seed: seen.append(rows))
    folder = desk.start(desk.document(mitigations={"shouter": {"own": True}, "kl": {"source": "general"}}))
    (rows,) = seen
    data = json.loads((folder / "data.json").read_text())
    assert len(rows["general"]) == data["written"][0]["rows"]
    assert "general" not in data["shares"][0]


def test_a_row_that_is_not_a_conversation_is_named(desk, with_shouter, monkeypatch, capsys):
    monkeypatch.setattr(Shouter, "generate_rows", OneForAll.generate_rows)
    assert desk.command("run", desk.write(desk.document(mitigations={"shouter": {}}))) == 1
    message = capsys.readouterr().err
    assert "mitigations.shouter, generate_rows: the row written for here" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("writer", "message"),
    [("nobody", "which is not in the stage"), ("lr_scale", "which does not write rows")],
)
def test_a_writer_that_cannot_write_is_named(desk, with_shouter, monkeypatch, capsys, writer, message):
    def transform(self, stages):
        part = StageSource("general", "general", written_by=writer)
        return tuple(replace(stage, sources=(*stage.sources, part)) for stage in stages)

    monkeypatch.setattr(Shouter, "transform_stages", transform)
    document = desk.document(mitigations={"shouter": {}, "lr_scale": {}})
    assert desk.command("validate", desk.write(document)) == 2
    assert message in capsys.readouterr().err


# -- kl ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_divergence_is_computed_on_what_the_base_model_wrote(desk, listener, monkeypatch):
    pools, recorder = [], listener()
    begin = GeneralKl.on_stage_start

    def begin_and_record(self, *arguments, **options):
        begin(self, *arguments, **options)
        pools.append([row.id for row in self.pool])

    monkeypatch.setattr(GeneralKl, "on_stage_start", begin_and_record)
    folder = desk.start(with_kl_on_answers(desk), recorder)
    rows = read_lines(folder / "written" / "kl" / "general.jsonl")
    assert pools == [[row["id"] for row in rows]] * 2, "both stages have the rows of the base model"
    answers = {row["output"] for row in read_lines(desk.folder / "general.jsonl")}
    assert all(row["messages"][-1]["content"] not in answers for row in rows)
    written = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert [(event.mitigation, event.model, event.rows, event.shares) for event in written] == [
        ("kl", "base", len(rows), {})
    ] * 2
    steps = [step["penalty/kl"] for step in read_lines(folder / "stages" / "a" / "steps.jsonl")]
    assert abs(steps[0]) < 1e-6 < steps[1]
    data = json.loads((folder / "data.json").read_text())
    assert all("general" not in shares for shares in data["shares"]), "the stages do not train on them"


@pytest.mark.slow
def test_an_interrupted_run_with_the_divergence_on_written_rows_equals_the_whole_one(desk, same, monkeypatch):
    document = with_kl_on_answers(desk)
    whole = desk.start(document)
    interrupted = interrupt(desk, document, 2, 3)
    monkeypatch.setattr(PromptRowsOfModel, "write_responses", refuse_to_write)
    desk.resume(interrupted)
    same(whole, interrupted)


@pytest.mark.slow
def test_mixing_and_divergence_with_equal_settings_use_the_same_rows_once(desk, listener, monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setenv("HARNESS_EVALUATION_CACHE", "1")
    document, recorder = self_written(desk), listener()
    document["mitigations"]["kl"] = {"source": "general", "answers": "model", "writing": WRITING}
    folder = desk.start(document, recorder)
    written = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert [(event.mitigation, event.cached) for event in written] == [("mixing", False), ("kl", True)]
    texts = [(folder / "written" / name / "general.jsonl").read_text() for name in ("mixing", "kl")]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_divergence_limits_how_many_prompts_are_answered(desk, listener):
    recorder = listener()
    desk.start(with_kl_on_answers(desk, {"writing": {**WRITING, "prompts": 5}}), recorder)
    assert {event.prompts for event in recorder.events if isinstance(event, RowsWritten)} == {5}


def test_check_and_plan_list_the_rows_of_the_divergence_as_not_yet_written(desk, capsys):
    file = desk.write(with_kl_on_answers(desk))
    assert desk.command("check", file) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "not yet written: the responses of general (kl)" in output
    assert "with the data's rows" not in output, "no share is counted in them"
    assert desk.command("plan", file) == 0
    assert "the responses of general (kl), not yet written" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_stages_with_other_settings_have_their_own_rows(desk, listener):
    recorder = listener()
    shorter = {"mitigations": {"kl": {"writing": {**WRITING, "prompts": 4}}}}
    folder = desk.start(with_kl_on_answers(desk, second=shorter), recorder)
    prompts = [event.prompts for event in recorder.events if isinstance(event, RowsWritten)]
    assert prompts[1] == 4 < prompts[0]
    first = read_lines(folder / "written" / "kl" / "general.jsonl")
    second = read_lines(folder / "stages" / "b" / "written" / "kl" / "general.jsonl")
    assert len(second) < len(first)
    assert {row["id"] for row in second} < {row["id"] for row in first}, "the same prompts have the same answers"


def test_the_task_is_not_answered_by_the_model_for_its_divergence(desk, capsys):
    document = desk.document(mitigations={"kl": {"on": "task", "answers": "model"}})
    assert desk.command("validate", desk.write(document)) == 2
    message = capsys.readouterr().err
    assert "mitigations.kl.answers: the model can write general rows only" in message
    assert ".json:1:" in message


# -- replay -----------------------------------------------------------------------------------------------------------


def with_replay_of_answers(desk, **mitigations):
    """A spec of two stages; the second trains on the model's answers to the prompts of the first."""
    replay = {"share": 0.25, "unit": "rows", "answers": "model", "writing": WRITING}
    document = desk.continual(mitigations={"replay": replay, **mitigations})
    document["train"] = {**document["train"], "steps": None, "epochs": 1, "batch_size": 2}
    return document


@pytest.mark.slow
def test_the_model_after_a_stage_answers_its_prompts_for_the_next_one(desk, listener):
    recorder = listener()
    folder = desk.start(with_replay_of_answers(desk), recorder)
    (event,) = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert (event.stage_index, event.source, event.model, event.cached) == (2, "domain", "current", False)
    begun = [event.stage_index for event in recorder.events if type(event).__name__ == "StepLogged"]
    assert begun[0] == 1
    order = [type(event).__name__ for event in recorder.events if type(event).__name__ in ("RowsWritten", "StepLogged")]
    assert order.index("RowsWritten") == begun.index(2), "between the stages"
    rows = read_lines(folder / "stages" / "b" / "written" / "replay" / "domain.jsonl")
    assert len(rows) == event.rows > 0
    answers = {row["output"] for row in read_lines(desk.folder / "domain.jsonl")}
    assert all(row["messages"][-1]["content"] not in answers for row in rows)
    assert all(row["messages"][0]["content"].startswith("Where is") for row in rows)
    assert event.shares["domain"]["rows"] == pytest.approx(0.25)
    assert not (folder / "written").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("stage_index", "step"), [(1, 3), (2, 3)])
def test_an_interrupted_run_with_replayed_answers_equals_the_whole_one(desk, same, monkeypatch, stage_index, step):
    document = with_replay_of_answers(desk, lora={"rank": 2})
    whole = desk.start(document)
    interrupted = interrupt(desk, document, stage_index, step)
    if stage_index == 2:
        monkeypatch.setattr(PromptRowsOfModel, "write_responses", refuse_to_write)
    desk.resume(interrupted)
    same(whole, interrupted)


@pytest.mark.slow
def test_an_arm_that_shares_a_stage_has_the_rows_that_were_written_for_it(desk):
    document = with_replay_of_answers(desk)
    stages = document["mode"]["continual"]["stages"]
    longer = {"mode": {"continual": {"stages": [*stages, {"name": "c", "domain": ["second"]}]}}}
    document["arms"] = {"named": {"short": {}, "long": longer}, "baseline": "short"}
    file = desk.write(document)
    assert desk.command("run", file) == 0
    folders = [desk.newest() / "arms" / name for name in ("short", "long")]
    texts = [(folder / "stages/b/written/replay/domain.jsonl").read_text() for folder in folders]
    assert texts[0] == texts[1]
    written = json.loads((folders[1] / "data.json").read_text())["written"]
    assert [(entry["stage"], entry["source"]) for entry in written] == [("b", "domain"), ("c", "domain")]


# -- self_distill -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rewriting(monkeypatch):
    """Every second row is rewritten in capitals; the responses to the others are cut."""

    def write(self, model, **settings):
        for index, example in enumerate(self.examples):
            finish = "length" if index % 2 else "eos"
            yield WrittenResponse(example, example.messages[-1].content.upper(), finish, 3)

    monkeypatch.setattr(PromptRowsOfModel, "write_responses", write)


def test_rewritten_responses_are_trained_and_the_others_stay_as_they_are(desk, listener, rewriting):
    recorder = listener()
    document = desk.document(mitigations={"self_distill": {}})
    document["train"] = {**document["train"], "steps": None, "epochs": 1}
    folder = desk.start(document, recorder)
    (event,) = [event for event in recorder.events if isinstance(event, RowsWritten)]
    assert (event.mitigation, event.source, event.model) == ("self_distill", "domain", "base")
    rows = read_lines(folder / "written" / "self_distill" / "domain.jsonl")
    assert event.rows == event.prompts == len(rows)
    rewritten = [row for row in rows if row["messages"][-1]["content"].endswith("IS HERE")]
    assert event.rows - event.unchanged == len(rewritten) == (len(rows) + 1) // 2
    assert event.rejected == {"not ended within 256 tokens": event.unchanged}
    data = json.loads((folder / "data.json").read_text())
    assert (data["written"][0]["rows"], data["written"][0]["unchanged"]) == (event.rows, event.unchanged)
    rejected = read_lines(folder / "written" / "self_distill" / "domain.rejected.jsonl")
    assert len(rejected) == event.unchanged
    assert all(row["raw"].endswith("IS HERE") for row in rejected)


def test_check_lists_the_rewritten_responses_as_not_yet_written(desk, capsys):
    assert desk.command("check", desk.write(desk.document(mitigations={"self_distill": {}}))) == 0
    assert "not yet written: the responses of domain (self_distill)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_an_interrupted_run_with_rewritten_responses_equals_the_whole_one(desk, same, monkeypatch, rewriting):
    document = desk.continual(mitigations={"self_distill": {}})
    whole = desk.start(document)
    interrupted = interrupt(desk, document, 2, 3)
    monkeypatch.setattr(PromptRowsOfModel, "write_responses", refuse_to_write)
    desk.resume(interrupted)
    same(whole, interrupted)
