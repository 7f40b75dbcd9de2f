"""The model's own responses are filtered, and take the place of those of the data."""

from __future__ import annotations

import pytest
from harness_mitigations.response_writer import (
    ConversationWriter,
    ResponseWriter,
    build_writer,
    keep_most_similar,
    repeated_fraction,
    word_f1,
)

from harness import Example, HarnessError, InvalidRecord, Message, WrittenPrompt, WrittenResponse
from harness.testing.fixed_prompt_rows import FixedPromptRows, build_prompt_rows

WRITER = ResponseWriter(prompts=None, max_new_tokens=9, temperature=1.0, top_p=0.9, max_repetition=0.2)


def test_each_row_is_used_or_says_why_not():
    rows = list(WRITER.write_rows(None, build_prompt_rows(count=5), seed=3))
    texts = [row.messages[-1].content for row in rows if isinstance(row, Example)]
    assert texts == ["answer 0 of seed 3", "answer 1 of seed 3"]
    reasons = [row.what for row in rows if isinstance(row, InvalidRecord)]
    assert reasons == ["not ended within 9 tokens", "empty", "without a prompt"]


def test_repetitive_responses_are_not_used():
    class Repeating(FixedPromptRows):
        def write_responses(self, model, **settings):
            assert settings == {"max_new_tokens": 9, "temperature": 1.0, "top_p": 0.9, "seed": 3}
            for example in self.examples:
                yield WrittenResponse(example, "one two three four " * 5, "eos", 20)

    rows = WRITER.write_rows(None, Repeating("chat", build_prompt_rows(count=1).examples), seed=3)
    assert [row.what for row in rows] == ["repetitive"]


WRITING = {
    "prompts": None,
    "max_new_tokens": 9,
    "temperature": 1.0,
    "top_p": 0.9,
    "max_repetition": 0.2,
    "min_log_probability": -5.0,
}


def test_each_prompt_of_the_model_is_answered_or_says_why_not():
    prompts = build_prompt_rows(count=2)
    rows = list(ConversationWriter(**{**WRITING, "prompts": 6}).write_rows(None, prompts, seed=3))
    conversations = [[message.content for message in row.messages] for row in rows if isinstance(row, Example)]
    assert conversations == [[f"What is {n} in seed 3?", f"answer {n} of seed 3"] for n in (0, 1)]
    reasons = [row.what for row in rows if isinstance(row, InvalidRecord)]
    assert reasons[0] == "a prompt not ended within 9 tokens"
    assert reasons[1:] == ["not ended within 9 tokens", "empty", "without a prompt"]
    assert len(rows) == 6
    assert len({row.location for row in rows}) == 6


def test_without_a_number_as_many_prompts_are_written_as_the_source_has_rows():
    assert len(list(ConversationWriter(**WRITING).write_rows(None, build_prompt_rows(count=4), seed=3))) == 4


@pytest.mark.parametrize(
    ("texts", "log_probability", "reasons"),
    [
        (["What is tea?", "what is TEA"], -1.0, ["a prompt twice"]),
        (["Hi there"], -1.0, ["a prompt of less than 3 words"]),
        (["", "!"], -1.0, ["a prompt of less than 3 words"] * 2),
        (["go on and on " * 5], -1.0, ["a repetitive prompt"]),
        (["What is tea?"], -5.1, ["an unlikely prompt"]),
        (["茶是什么"], -5.0, []),
    ],
)
def test_prompts_are_filtered(texts, log_probability, reasons):
    class Prompts(FixedPromptRows):
        def write_prompts(self, model, count, **settings):
            assert settings == {"max_new_tokens": 9, "temperature": 1.0, "top_p": 0.9, "seed": 3}
            for text in texts:
                yield WrittenPrompt(text, "stop", 9, log_probability)

    rows = list(ConversationWriter(**WRITING).write_rows(None, Prompts("chat", ()), seed=3))
    assert [row.what for row in rows if isinstance(row, InvalidRecord)] == reasons
    assert len(rows) == len(texts)


def test_the_settings_of_written_prompts_have_their_number():
    settings = ConversationWriter(**WRITING).settings()
    assert settings == {"writer": "conversations|version:1", **WRITING}
    assert settings != WRITER.settings()


def test_prompts_of_the_model_need_a_temperature():
    with pytest.raises(HarnessError, match="at 0 the model writes one prompt only"):
        build_writer("kl", "data", "model", {**WRITING, "temperature": 0})
    assert build_writer("kl", "data", "data", WRITING) is None
    assert type(build_writer("kl", "model", "data", WRITING)) is ResponseWriter
    assert type(build_writer("kl", "model", "model", WRITING)) is ConversationWriter


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),
        ("a b c", 0.0),
        ("a b c d e", 0.0),
        ("a b c d a b c d", 1 / 5),
        ("A b, c d. a B c D!", 1 / 5),
        ("a " * 13, 9 / 10),
        ("茶" * 13, 9 / 10),
    ],
)
def test_the_repeated_fraction_counts_sequences_of_four_words(text, expected):
    assert repeated_fraction(text) == pytest.approx(expected)


def test_settings_have_everything_but_the_number_of_prompts():
    assert WRITER.settings() == {
        "writer": "responses|version:1", "max_new_tokens": 9, "temperature": 1.0, "top_p": 0.9, "max_repetition": 0.2
    }  # fmt: skip


def test_only_the_written_response_of_a_conversation_is_trained():
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    written = WrittenResponse(Example("0", turns, "x:1", data={"topic": "tea"}), "new", "eos", 3).to_example()
    assert [message.content for message in written.messages] == ["a", "b", "c", "new"]
    assert [message.train for message in written.messages if message.role == "assistant"] == [False, True]
    assert written.data == {"topic": "tea"}


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("", "", 0.0),
        ("", "a b", 0.0),
        ("a b", "A, b.", 1.0),
        ("a b c", "b", 2 / 4),
        ("a a b", "a c", 2 / 5),
        ("茶很热", "茶热", 4 / 5),
    ],
)
def test_word_f1_counts_each_word_as_often_as_it_occurs(text, reference, expected):
    assert word_f1(text, reference) == pytest.approx(expected)


@pytest.mark.parametrize(("keep", "count"), [(1, 4), (0.5, 2), (0.01, 1)])
def test_at_least_one_row_is_kept_and_the_first_of_equal_ones(keep, count):
    prompts = build_prompt_rows(count=10)
    rows = list(WRITER.write_rows(None, prompts, seed=3))
    kept = [row for row in keep_most_similar(rows, prompts.examples, keep) if isinstance(row, Example)]
    assert kept == [row for row in rows if isinstance(row, Example)][:count]


def test_where_no_row_is_usable_none_is_kept():
    rejected = [InvalidRecord("x:1", "empty")]
    assert list(keep_most_similar(rejected, build_prompt_rows(count=1).examples, 0.5)) == rejected
