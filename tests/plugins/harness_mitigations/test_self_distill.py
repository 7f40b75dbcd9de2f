"""Responses of the domain that the base model rewrites: used where they agree with those of the data."""

from __future__ import annotations

import pytest
from harness_mitigations.self_distill import INSTRUCTION, SelfDistill

from harness import Example, HarnessError, InvalidRecord, Message, Stage, StageSource, ToolCall, WrittenResponse
from harness.testing.fixed_prompt_rows import FixedPromptRows

OPTIONS = {"min_f1": 0.5, "same_number": True, "instruction": INSTRUCTION, "max_new_tokens": 9, "temperature": 1.0}
OPTIONS |= {"top_p": 0.9, "max_repetition": 0.2}
STAGE = Stage("desk", (StageSource("desk", "domain"), StageSource("chat", "general")))


class Rewriting(FixedPromptRows):
    """Answers each row with a text of `TEXTS` and a reason of its end, and remembers what it was asked."""

    texts: tuple[tuple[str, str], ...] = ()
    asked: tuple[Example, ...] = ()

    def write_responses(self, model, **settings):
        assert settings == {"max_new_tokens": 9, "temperature": 1.0, "top_p": 0.9, "seed": 3}
        Rewriting.asked = tuple(self.examples)
        for example, (text, finish) in zip(self.examples, self.texts, strict=True):
            yield WrittenResponse(example, text, finish, 3)


def build_row(question, answer, index=1, **message):
    return Example(f"{index:016x}", (Message("user", question), Message("assistant", answer, **message)), f"x:{index}")


def rewrite(monkeypatch, rows, texts, **options):
    monkeypatch.setattr(Rewriting, "texts", tuple(texts))
    mitigation = SelfDistill(**{**OPTIONS, **options})
    return list(mitigation.generate_rows(STAGE, None, Rewriting("desk", rows), seed=3))


@pytest.mark.parametrize(
    ("reference", "text", "finish", "reason"),
    [
        ("It holds six pots.", "It holds six pots in all.", "eos", None),
        ("It holds 6 pots.", "It holds 7 pots.", "eos", "another last number"),
        ("It holds 6 pots.", "It holds 6.0 pots.", "stop", None),
        ("It holds six pots.", "It holds 6 pots.", "eos", "another last number"),
        ("It holds six pots.", "Nobody knows.", "eos", "F1 below 0.5"),
        ("It holds six pots.", "It holds six", "length", "not ended within 9 tokens"),
        ("It holds six pots.", "", "empty", "empty"),
        ("It holds six pots.", "", "no_prompt", "without a prompt"),
        ("a b c d", "a b c d " * 5, "eos", "repetitive"),
        ("It holds six pots.", "Like the Reference answer: It holds six pots.", "eos", "repeats the instruction"),
    ],
)
def test_a_rewritten_response_is_used_where_it_agrees(monkeypatch, reference, text, finish, reason):
    row = build_row("How many pots?", reference)
    result = rewrite(monkeypatch, [row], [(text, finish)])
    if reason is None:
        (written,) = result
        assert [message.content for message in written.messages] == ["How many pots?", text]
    else:
        rejected, kept = result
        assert (rejected.location, rejected.what, rejected.raw) == ("x:1", reason, text)
        assert kept == row


def test_both_checks_can_be_turned_off(monkeypatch):
    row = build_row("How many pots?", "It holds 6 pots.")
    (written,) = rewrite(monkeypatch, [row], [("Seven 7", "eos")], same_number=False, min_f1=0)
    assert written.messages[-1].content == "Seven 7"


def test_the_model_is_asked_with_prompt_and_response(monkeypatch):
    turns = (Message("system", "Be kind."), Message("user", "a"), Message("assistant", "b", train=False))
    last = (Message("user", "Sum up {response}", input="the text"), Message("assistant", "the {prompt}"))
    row = Example("1" * 16, (*turns, *last), "x:1", data={"topic": "tea"})
    (written,) = rewrite(monkeypatch, [row], [("the {prompt} ", "eos")])
    (asked,) = Rewriting.asked
    assert asked.messages[:3] == turns
    expected = "### Instruction:\nSum up {response}\n\nthe text\n\n### Reference answer:\nthe {prompt}\n\n### Response:"
    assert asked.messages[3].content.endswith(expected)
    assert asked.id == row.id
    assert written == row


@pytest.mark.parametrize(
    "row",
    [
        Example("1" * 16, (Message("text", "plain"),), "x:1"),
        build_row("a", "b", reasoning="because"),
        build_row("a", "b", tool_calls=(ToolCall("weather", {}),)),
        Example("1" * 16, build_row("a", "b").messages, "x:1", tools=({"name": "weather"},)),
        Example("1" * 16, build_row("a", "b").messages, "x:1", choices=("a", "b")),
        Example("1" * 16, (Message("assistant", "b"),), "x:1"),
    ],
    ids=["text", "reasoning", "calls", "tools", "choices", "no request"],
)
def test_rows_of_another_form_stay_as_they_are(monkeypatch, row):
    other = build_row("Say tea", "tea", 2)
    rejected, kept, written = rewrite(monkeypatch, [row, other], [("Tea", "eos")])
    assert (rejected.what, kept) == ("not a plain request", row)
    assert written.messages[-1].content == "Tea"


def test_only_the_rows_of_the_domain_are_rewritten():
    (stage,) = SelfDistill(**OPTIONS).transform_stages((STAGE,))
    assert [part.written_by for part in stage.sources] == ["self_distill", None]


def test_the_settings_have_every_option():
    settings = SelfDistill(**OPTIONS).generation_settings()
    assert settings == {"writer": "self_distill|version:1", **OPTIONS}


@pytest.mark.parametrize(("text", "missing"), [("{prompt}", "{response}"), ("x", "{prompt} and {response}")])
def test_an_instruction_without_prompt_or_response_is_refused(text, missing):
    with pytest.raises(HarnessError) as raised:
        SelfDistill(**{**OPTIONS, "instruction": text})
    assert raised.value.where == "mitigations.self_distill.instruction"
    assert raised.value.what == f"the instruction does not contain {missing}"


def test_no_row_is_lost(monkeypatch):
    rows = [build_row(f"question {index}", f"answer {index}", index) for index in range(4)]
    texts = [("answer 0", "eos"), ("answer 9", "eos"), ("", "empty"), ("Answer 3", "eos")]
    result = rewrite(monkeypatch, rows, texts)
    used = [row for row in result if isinstance(row, Example)]
    assert [row.location for row in used] == [row.location for row in rows]
    assert [row.what for row in result if isinstance(row, InvalidRecord)] == ["another last number", "empty"]
