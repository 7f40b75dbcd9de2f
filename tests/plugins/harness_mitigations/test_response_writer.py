"""The model's own responses are filtered, and take the place of those of the data."""

from __future__ import annotations

import pytest
from harness_mitigations.response_writer import ResponseWriter, keep_most_similar, repeated_fraction, word_f1

from harness import Example, InvalidRecord, Message, WrittenResponse
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
