"""Responses that a model writes to training rows: seeded row by row, in the order of the rows."""

from __future__ import annotations

import pytest
import torch

from harness import registry
from harness.evaluation.generation import UndefinedLogits
from harness.evaluation.written_responses import PromptRowsOfModel
from harness.types import Example, Message

TOOL = {"name": "weather", "parameters": {"type": "object"}}
ROWS = [
    Example(f"{index:016x}", (Message("user", question), Message("assistant", "x")), f"a.jsonl:{index}")
    for index, question in enumerate(("Hi", "What is tea?", "Spell amber"), 1)
]


@pytest.fixture
def write(tokenizer, tiny_model):
    """Return a function that lets the tiny model answer rows, and returns the responses."""
    template = registry.discover_plugins().create("templates", "chatml", {"system": None})

    def write(rows, max_length=64, **settings):
        prompts = PromptRowsOfModel("chat", rows, tokenizer, template, max_length)
        options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3, **settings}
        return list(prompts.write_responses(tiny_model.eval(), **options))

    return write


def test_a_response_depends_on_the_seed_and_its_row_alone(write):
    responses = write(ROWS)
    assert [response.example for response in responses] == ROWS
    assert write(ROWS) == responses
    assert write(ROWS[::-1])[::-1] == responses
    assert write(ROWS[1:2]) == responses[1:2]
    assert write(ROWS, batch_size=1) == responses
    assert [one.text != other.text for one, other in zip(responses, write(ROWS, seed=4), strict=True)] == [True] * 3


def test_at_temperature_0_the_seed_does_not_matter(write):
    assert write(ROWS, temperature=0) == write(ROWS, temperature=0, seed=4)


def test_a_response_that_is_cut_says_so(write):
    assert {(response.finish, response.tokens) for response in write(ROWS, max_new_tokens=1, temperature=0)} <= {
        ("length", 1), ("empty", 1), ("eos", 1)
    }  # fmt: skip


def test_rows_without_a_prompt_or_without_room_for_a_response_are_not_asked(write):
    text = Example("4" * 16, (Message("text", "plain"),), "a.jsonl:4")
    tools = Example("5" * 16, ROWS[0].messages, "a.jsonl:5", tools=(TOOL,))
    long = Example("6" * 16, (Message("user", "x" * 100), Message("assistant", "x")), "a.jsonl:6")
    responses = write([text, ROWS[0], tools, long])
    assert [response.finish == "no_prompt" for response in responses] == [True, False, True, True]
    assert write([text]) == [responses[0]]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_model_without_numbers_is_named_with_what_it_writes(write, tiny_model, temperature):
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UndefinedLogits, match=r"write chat: the outputs of the model are not numbers \(NaN\)"):
        write(ROWS, temperature=temperature)


@pytest.fixture
def ask(tokenizer, tiny_model):
    """Return a function that lets the tiny model write prompts, and the prompt rows."""
    template = registry.discover_plugins().create("templates", "chatml", {"system": None})

    def ask(count, **settings):
        prompts = PromptRowsOfModel("chat", (), tokenizer, template, 64)
        options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3, **settings}
        return list(prompts.write_prompts(tiny_model.eval(), count, **options))

    return ask


def test_a_prompt_depends_on_the_seed_and_its_number_alone(ask):
    prompts = ask(6)
    assert ask(6) == prompts
    texts = [prompt.text for prompt in prompts]
    assert [prompt.text for prompt in ask(4)] == texts[:4]
    assert [prompt.text for prompt in ask(6, batch_size=1)] == texts
    assert len({prompt.text for prompt in prompts + ask(6, seed=4)}) == 12


def test_a_prompt_follows_the_header_of_a_users_turn(ask, tokenizer, tiny_model):
    (prompt,) = ask(1, temperature=0, max_new_tokens=5)
    ids = torch.tensor([tokenizer("<|im_start|>user\n", add_special_tokens=False).input_ids])
    log_probability = 0.0
    for _ in range(5):
        log_probabilities = tiny_model(ids).logits[0, -1].log_softmax(-1)
        log_probability += log_probabilities.max().item()
        ids = torch.cat([ids, log_probabilities.argmax()[None, None]], dim=1)
    written = tokenizer.decode(ids[0, -5:], skip_special_tokens=True)
    assert (prompt.text, prompt.tokens) == (written.strip(), 5)
    assert prompt.log_probability == pytest.approx(log_probability / 5, abs=1e-4)


def test_a_prompt_ends_at_the_end_of_the_users_turn(ask):
    prompts = ask(60)
    assert {"stop", "length"} <= {prompt.finish for prompt in prompts}
    assert {prompt.tokens for prompt in prompts if prompt.finish == "length"} == {40}
