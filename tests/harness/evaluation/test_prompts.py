"""How a suite asks: by the template or plainly, and what ends an answer."""

from __future__ import annotations

import pytest

from harness.evaluation.context import EvalContext, build_plain_prompt
from harness.evaluation.generation import resolve_stops
from harness.types import Example, Message


def subject(kit, tokenizer, **settings):
    return EvalContext(None, tokenizer, kit.template(), kit.suite(**settings), (), 0, 0, 100, None, lambda note: None)


def test_a_plain_prompt_is_the_question_alone(kit, tokenizer):
    row = kit.example("Who?", "r")
    assert tokenizer.decode(subject(kit, tokenizer, plain=True).prompt_ids(row)) == "Who?"
    assert tokenizer.decode(subject(kit, tokenizer).prompt_ids(row)).startswith("<|im_start|>user\nWho?")
    assert tokenizer.decode(subject(kit, tokenizer, plain=True).prompt_ids(row, 3)) == "ho?"


def test_a_plain_prompt_holds_the_system_message_and_the_input_too(kit):
    messages = (Message("system", "Be brief."), Message("user", "Sum up.", input="Text."), Message("assistant", "x"))
    assert build_plain_prompt(Example("1", messages, "p")) == "Be brief.\n\nSum up.\n\nText."


def test_a_suites_own_stops_stand_beside_the_templates_and_nothing_is_implied(kit, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    stops = resolve_stops(kit.template(), tokenizer, ["\n\n", "Human:"])
    assert (stops.eos_id, stops.token_ids, stops.strings) == (tokenizer.eos_token_id, {end}, ("\n\n", "Human:"))
    plain = resolve_stops(kit.template(), tokenizer, use_template_stops=False)
    assert (plain.eos_id, plain.token_ids, plain.strings) == (tokenizer.eos_token_id, frozenset(), ())


@pytest.mark.parametrize(
    ("stop", "answer", "finish"), [(["lon"], "a much ", "stop"), ([], "a much longer one", "stop")]
)
def test_an_answer_ends_at_a_suites_own_stop(kit, tokenizer, stop, answer, finish):
    row = kit.example("a much longer one", "r")
    result = kit.evaluate(kit.echo(), kit.suite(stop=stop), [row], {"same": kit.same}, max_length=100)
    assert (result.items[0].answer, result.items[0].finish) == (answer, finish)
