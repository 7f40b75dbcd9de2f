"""The proof of a mask: it holds for the built-in templates, and fails for every way of being wrong."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
from harness_templates import harness_templates

from harness import Example, HarnessError, Message, Span, Template
from harness.data.tokenization.label_mask import EncodedExample
from harness.data.tokenization.mask_verification import verify_mask
from harness.data.tokenization.tokenize import encode_examples

ANSWERS = ("The Elbe.", "长江 🙂 </s>")
MESSAGES = (
    Message("user", "Name a river <|im_end|>."),
    Message("assistant", ANSWERS[0]),
    Message("user", "再说一条河。"),
    Message("assistant", ANSWERS[1]),
)
EXAMPLE = Example("id", MESSAGES, "rows.jsonl:7")


def make(name, **options):
    component = harness_templates()[name]
    module, _, attribute = component.factory.partition(":")
    defaults = {key: schema["default"] for key, schema in component.options.items()}
    return getattr(importlib.import_module(module), attribute)(**{**defaults, **options})


class Broken(Template):
    """ChatML, with every span passed through `wrong`."""

    name = "broken"

    def __init__(self, wrong):
        self.wrong, self.chatml = wrong, make("chatml")

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = []
        for span in self.chatml.render(messages, tokenizer, add_generation_prompt=add_generation_prompt):
            spans += self.wrong(span)
        return tuple(spans)

    def stop_strings(self, tokenizer):
        return self.chatml.stop_strings(tokenizer)


def marked(condition, trained):
    return lambda span: [dataclasses.replace(span, train=trained) if condition(span) else span]


WRONG = {
    "everything is trained": (marked(lambda s: True, True), "stretches"),
    "the header is trained": (marked(lambda s: s.text.endswith("assistant\n"), True), "precedes response 2"),
    "the prompt is trained": (marked(lambda s: s.text.startswith("Name"), True), "stretches"),
    "the end of turn is not trained": (marked(lambda s: s.text == "<|im_end|>", False), "end of turn"),
    "the response is not trained": (marked(lambda s: s.text in ANSWERS, False), "do not hold the text"),
    "one response is not trained": (marked(lambda s: s.text == ANSWERS[1], False), "do not hold the text"),
    "the line break's neighbour is trained": (
        marked(lambda s: s.text == "<|im_start|>user\n", True),
        "precedes|after the end|stretches",
    ),
    "the first words are not trained": (
        lambda s: [Span(s.text[:4]), Span(s.text[4:], train=True)] if s.text in ANSWERS else [s],
        "do not hold the text",
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


def encoded(template, tokenizer, max_length=4096, example=EXAMPLE):
    return encode_examples([example], "s", template, tokenizer, max_length)[0]


@pytest.mark.parametrize(
    "name", ["alpaca", "chatml", "instruction_zh", "llama2", "qwen", "tokenizer", "vicuna", "zephyr"]
)
def test_built_in_templates_are_proven_at_every_length(name, tokenizer):
    template = make(name)
    whole = encoded(template, tokenizer)
    verify_mask(EXAMPLE, whole, template, tokenizer)
    for length in range(1, len(whole.row.input_ids), 7):
        verify_mask(EXAMPLE, encoded(template, tokenizer, length), template, tokenizer)


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_a_wrong_mask_is_found_by_the_rows_place(wrong, tokenizer):
    change, what = WRONG[wrong]
    template = Broken(change)
    with pytest.raises(HarnessError, match=what) as error:
        verify_mask(EXAMPLE, encoded(template, tokenizer), template, tokenizer)
    assert error.value.where == "rows.jsonl:7"
    assert "template broken" in error.value.what


def test_a_wrong_mask_is_found_in_a_truncated_row_too(tokenizer):
    template = Broken(WRONG["the end of turn is not trained"][0])
    with pytest.raises(HarnessError, match="end of turn"):
        verify_mask(EXAMPLE, encoded(template, tokenizer, 60), template, tokenizer)


def test_without_a_fault_the_broken_template_is_proven(tokenizer):
    template = Broken(lambda span: [span])
    verify_mask(EXAMPLE, encoded(template, tokenizer), template, tokenizer)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda row: {"labels": row.labels[1:]}, "labels for"),
        (lambda row: {"labels": (*row.labels[:-2], row.labels[-2] + 1, -100)}, "another token"),
        (lambda row: {"labels": row.labels[:-1], "input_ids": row.input_ids[:-1]}, None),
    ],
)
def test_a_row_that_was_changed_is_found(change, what, tokenizer):
    template = make("alpaca")
    found = encoded(template, tokenizer)
    changed = EncodedExample(dataclasses.replace(found.row, **change(found.row)), 0)
    with pytest.raises(HarnessError, match=what or "end of turn"):
        verify_mask(EXAMPLE, changed, template, tokenizer)


def test_a_truncated_row_must_be_the_beginning_of_the_whole(tokenizer):
    template = make("chatml")
    found = encoded(template, tokenizer, 60)
    wrong = dataclasses.replace(found.row, labels=(-100,) * 60)
    with pytest.raises(HarnessError, match="not the beginning of the whole"):
        verify_mask(EXAMPLE, EncodedExample(wrong, found.tokens_cut), template, tokenizer)


def test_a_response_that_begins_with_white_space_is_proven(tokenizer):
    for name in ("chatml", "alpaca", "llama2", "tokenizer"):
        example = Example("id", (MESSAGES[0], Message("assistant", "\n\n  The Elbe.\n")), "rows.jsonl:7")
        verify_mask(example, encoded(make(name), tokenizer, example=example), make(name), tokenizer)
