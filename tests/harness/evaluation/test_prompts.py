"""Prompts with and without a template, and stop conditions."""

from __future__ import annotations

import pytest

from harness.evaluation.context import EvalContext, build_plain_prompt
from harness.evaluation.generation import resolve_stops
from harness.types import Example, Message


def build_context(kit, tokenizer, **settings):
    return EvalContext(None, tokenizer, kit.template(), kit.suite(**settings), (), 0, 0, 100, None, lambda note: None)


def test_plain_prompt_is_the_question(kit, tokenizer):
    row = kit.example("Who?", "r")
    assert tokenizer.decode(build_context(kit, tokenizer, plain=True).prompt_ids(row)) == "Who?"
    assert tokenizer.decode(build_context(kit, tokenizer).prompt_ids(row)).startswith("<|im_start|>user\nWho?")
    assert tokenizer.decode(build_context(kit, tokenizer, plain=True).prompt_ids(row, 3)) == "ho?"


def test_plain_prompt_includes_system_message_and_input(kit):
    messages = (Message("system", "Be brief."), Message("user", "Sum up.", input="Text."), Message("assistant", "x"))
    assert build_plain_prompt(Example("1", messages, "p")) == "Be brief.\n\nSum up.\n\nText."


def test_stops_are_those_of_template_and_suite(kit, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    stops = resolve_stops(kit.template(), tokenizer, ["\n\n", "Human:"])
    assert (stops.eos_id, stops.token_ids, stops.strings) == (tokenizer.eos_token_id, {end}, ("\n\n", "Human:"))
    plain = resolve_stops(kit.template(), tokenizer, use_template_stops=False)
    assert (plain.eos_id, plain.token_ids, plain.strings) == (tokenizer.eos_token_id, frozenset(), ())


@pytest.mark.parametrize(
    ("stop", "answer", "finish"), [(["lon"], "a much ", "stop"), ([], "a much longer one", "stop")]
)
def test_answer_ends_at_a_stop_of_the_suite(kit, tokenizer, stop, answer, finish):
    row = kit.example("a much longer one", "r")
    result = kit.evaluate(kit.echo(), kit.suite(stop=stop), [row], {"same": kit.same}, max_length=100)
    assert (result.items[0].answer, result.items[0].finish) == (answer, finish)
