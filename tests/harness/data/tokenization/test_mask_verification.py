"""Verification of one mask: it passes for the built-in templates and fails for every type of wrong mask."""

from __future__ import annotations

import dataclasses

import pytest
from support.tokenization_cases import create_template

from harness import Example, HarnessError, Message, Span, Template
from harness.data.tokenization.tokenize import tokenize_examples
from harness.testing.full_mask_check import verify_mask

ANSWERS = ("The Elbe.", "长江 🙂 </s>")
MESSAGES = (
    Message("user", "Name a river <|im_end|>."),
    Message("assistant", ANSWERS[0]),
    Message("user", "再说一条河。"),
    Message("assistant", ANSWERS[1]),
)
EXAMPLE = Example("id", MESSAGES, "rows.jsonl:7")


class ChangedChatML(Template):
    """ChatML with every span passed through a function."""

    name = "changed"

    def __init__(self, change):
        self.change, self.chatml = change, create_template("chatml")

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = []
        for span in self.chatml.render(messages, tokenizer, add_generation_prompt=add_generation_prompt):
            spans += self.change(span)
        return tuple(spans)

    def stop_strings(self, tokenizer):
        return self.chatml.stop_strings(tokenizer)


def set_train(condition, train):
    return lambda span: [dataclasses.replace(span, train=train) if condition(span) else span]


WRONG = {
    "everything is trained": (set_train(lambda s: True, True), "trained spans"),
    "the header is trained": (set_train(lambda s: s.text.endswith("assistant\n"), True), "before response 2"),
    "the prompt is trained": (set_train(lambda s: s.text.startswith("Name"), True), "trained spans"),
    "the end of turn is not trained": (set_train(lambda s: s.text == "<|im_end|>", False), "end of turn"),
    "the response is not trained": (set_train(lambda s: s.text in ANSWERS, False), "do not contain the text"),
    "one response is not trained": (set_train(lambda s: s.text == ANSWERS[1], False), "do not contain the text"),
    "the line break's neighbour is trained": (
        set_train(lambda s: s.text == "<|im_start|>user\n", True),
        "before response|after the end|trained spans",
    ),
    "the first words are not trained": (
        lambda s: [Span(s.text[:4]), Span(s.text[4:], train=True)] if s.text in ANSWERS else [s],
        "do not contain the text",
    ),
    "the end of turn is text": (
        lambda s: [dataclasses.replace(s, markup=False)] if s.text == "<|im_end|>" and s.train else [s],
        "end of turn",
    ),
    "text after the end of turn is trained": (
        lambda s: [s, Span("more", train=True)] if s.text == "<|im_end|>" and s.train else [s],
        "after the end of response 2 is trained: 'more'",
    ),
}


def tokenize_row(template, tokenizer, max_length=4096, example=EXAMPLE):
    return tokenize_examples([example], "s", template, tokenizer, max_length)[0]


@pytest.mark.parametrize(
    "name", ["alpaca", "chatml", "instruction_zh", "llama2", "qwen", "tokenizer", "vicuna", "zephyr"]
)
def test_built_in_templates_are_verified_at_every_length(name, tokenizer):
    template = create_template(name)
    whole = tokenize_row(template, tokenizer)
    verify_mask(EXAMPLE, whole, template, tokenizer)
    for length in range(1, len(whole.input_ids), 7):
        verify_mask(EXAMPLE, tokenize_row(template, tokenizer, length), template, tokenizer)


@pytest.mark.parametrize("case", sorted(WRONG))
def test_wrong_mask_is_an_error_at_the_rows_location(case, tokenizer):
    change, message = WRONG[case]
    template = ChangedChatML(change)
    with pytest.raises(HarnessError, match=message) as error:
        verify_mask(EXAMPLE, tokenize_row(template, tokenizer), template, tokenizer)
    assert error.value.where == "rows.jsonl:7"
    assert "template changed" in error.value.what


def test_wrong_mask_is_found_in_a_truncated_row(tokenizer):
    template = ChangedChatML(WRONG["the end of turn is not trained"][0])
    with pytest.raises(HarnessError, match="end of turn"):
        verify_mask(EXAMPLE, tokenize_row(template, tokenizer, 60), template, tokenizer)


def test_unchanged_template_is_verified(tokenizer):
    template = ChangedChatML(lambda span: [span])
    verify_mask(EXAMPLE, tokenize_row(template, tokenizer), template, tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"labels": row.labels[1:]}, "labels for"),
        (lambda row: {"labels": (*row.labels[:-2], row.labels[-2] + 1, -100)}, "a label differs"),
        (lambda row: {"labels": row.labels[:-1], "input_ids": row.input_ids[:-1]}, None),
    ],
)
def test_changed_row_is_found(change, message, tokenizer):
    template = create_template("alpaca")
    row = tokenize_row(template, tokenizer)
    changed = dataclasses.replace(row, **change(row))
    with pytest.raises(HarnessError, match=message or "end of turn"):
        verify_mask(EXAMPLE, changed, template, tokenizer)


def test_truncated_row_must_be_a_prefix_of_the_untruncated_row(tokenizer):
    template = create_template("chatml")
    row = tokenize_row(template, tokenizer, 60)
    changed_row = dataclasses.replace(row, labels=(-100,) * 60)
    with pytest.raises(HarnessError, match="not a prefix of the untruncated"):
        verify_mask(EXAMPLE, changed_row, template, tokenizer)


def test_response_that_begins_with_white_space_is_verified(tokenizer):
    for name in ("chatml", "alpaca", "llama2", "tokenizer"):
        example = Example("id", (MESSAGES[0], Message("assistant", "\n\n  The Elbe.\n")), "rows.jsonl:7")
        verify_mask(
            example, tokenize_row(create_template(name), tokenizer, example=example), create_template(name), tokenizer
        )
