"""Rows that a chat template has rendered before are named; rows that only mention a token are not."""

from __future__ import annotations

import pytest
from harness_templates.chatml import ChatML

from harness.data.checks.findings import analyze_data
from harness.data.checks.rendered_rows import RenderedRows, find_rendered_rows, turn_markers
from harness.types import Example, Message

RENDERED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
CONVERSATION = (Message("user", "Hi"), Message("assistant", "Hello."))
KINDS = {
    "text": (Message("text", RENDERED),),
    "end of an output": (Message("user", "Hi"), Message("assistant", "Hello.<|im_end|>")),
    "prompt": (Message("user", RENDERED), Message("assistant", "Hello.")),
    "input": (Message("user", "Hi", input="<|im_start|>"), Message("assistant", "Hello.")),
    "reasoning": (Message("user", "Hi"), Message("assistant", "Hello.", reasoning="I<|im_end|>")),
}
CHECKS = {"untrained": None, "near_duplicates": None, "contamination": None}


def rows(messages, count, name="x"):
    return [Example(f"{index:016x}", messages, f"{name}.jsonl:{index + 1}") for index in range(count)]


def test_markers_are_the_special_tokens_of_the_tokenizer(tokenizer):
    markers = turn_markers(tokenizer, ChatML(None))
    assert {"<|im_start|>", "<|im_end|>", tokenizer.eos_token} <= set(markers)
    assert tokenizer.unk_token not in markers


@pytest.mark.parametrize("kind", KINDS)
def test_rendered_rows_are_counted_and_named(kind, tokenizer):
    markers = turn_markers(tokenizer, ChatML(None))
    data = {"x": [*rows(CONVERSATION, 5), *rows(KINDS[kind], 4)]}
    (found,) = find_rendered_rows(data, markers).values()
    assert (found.rows, found.rendered, found.places) == (9, 4, ("x.jsonl:1", "x.jsonl:2", "x.jsonl:3"))
    assert found.marker in ("<|im_start|>", "<|im_end|>")
    assert find_rendered_rows({"x": [*rows(CONVERSATION, 5), *rows(KINDS[kind], 3)]}, markers) == {}


def test_rendered_rows_are_a_warning_that_names_rows_and_token():
    findings = analyze_data({"x": rows(KINDS["text"], 5)}, {}, CHECKS, seed=0, markers=["<|im_end|>"])
    assert findings.rendered_rows == {"x": RenderedRows(5, 5, "<|im_end|>", ("x.jsonl:1", "x.jsonl:2", "x.jsonl:3"))}
    (warning,) = findings.warnings
    assert warning.startswith("sources.x: 5 of its 5 training rows contain '<|im_end|>' as text")
    assert warning.splitlines()[1:] == ["x.jsonl:1", "x.jsonl:2", "x.jsonl:3", "and 2 more"]
    assert findings.to_dict()["rendered"]["x"]["rendered"] == 5


def test_rendered_rows_of_a_suite_are_a_warning_of_the_suite():
    findings = analyze_data({}, {"s": rows(KINDS["text"], 5)}, CHECKS, seed=0, markers=["<|im_end|>"])
    (warning,) = findings.warnings
    assert warning.startswith("evaluate.s: 5 of its 5 rows contain '<|im_end|>' as text")
    assert warning.splitlines()[1] == "x.jsonl:1"
    assert findings.rendered_rows == {}, "they are not trained"
