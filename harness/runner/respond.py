"""Answer conversations with the model of a run: token by token for a chat, in batches for a file of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data.tokenization.prompts import encode_prompt
from harness.errors import HarnessError
from harness.evaluation.generation import (
    Answer,
    Decoding,
    StopConditions,
    TokenSampler,
    TopPSampler,
    decode_tokens,
    generate_answers,
    greedy,
    resolve_stops,
    truncate_at_stop,
)
from harness.runner.trained_model import TrainedModel
from harness.seeding import derive_seed
from harness.types import Example, Message

PLACEHOLDER = Message("assistant", "")
"""The response of an example whose prompt is answered."""


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are generated.

    Attributes:
        max_new_tokens: Maximum number of tokens of an answer.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Probability mass to sample from, above 0 and up to 1.
        seed: Seed of sampled answers.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def create_sampler(self, keys: Sequence[int]) -> TokenSampler:
        """Return the sampler of these answers; each key has a seed of its own."""
        if not self.temperature:
            return greedy
        seeds = {key: derive_seed(self.seed, "answer", str(key)) for key in keys}
        return TopPSampler(self.temperature, self.top_p, seeds)


def stream_answer(
    trained: TrainedModel,
    model: Any,
    messages: Sequence[Message],
    settings: AnswerSettings,
    on_text: Callable[[str], None],
    *,
    turn: int = 0,
) -> Answer:
    """Answer a conversation.

    Args:
        trained: The model of the run, whose tokenizer, template and stops are used.
        model: The model that answers: that of the run, or its base model.
        messages: The conversation; it ends before a response.
        settings: How the answer is generated.
        on_text: Receives the answer so far after each token, without what may be the beginning of a stop.
        turn: Number of the answer in the conversation, for the seed of sampling.

    Raises:
        HarnessError: The template refuses the conversation.
    """
    stops = resolve_stops(trained.template, trained.tokenizer)
    prompt = encode_messages(trained, messages, settings.max_new_tokens)
    answers: list[Answer] = []

    def on_token(key: int, tokens: Sequence[int]) -> None:
        if tokens[-1] != stops.eos_id and tokens[-1] not in stops.token_ids:
            on_text(_stable_text(trained.tokenizer, tokens, stops))

    decoding = Decoding(settings.max_new_tokens, settings.create_sampler([turn]), 1, trained.batch_support.cache)
    with trained.autocast():
        generate_answers(
            model,
            trained.tokenizer,
            {turn: prompt},
            stops=stops,
            decoding=decoding,
            on_answer=lambda key, answer: answers.append(answer),
            on_token=on_token,
        )
    return answers[0]


def answer_batch(
    trained: TrainedModel,
    model: Any,
    conversations: Mapping[int, Sequence[Message]],
    settings: AnswerSettings,
    batch_size: int,
    on_answer: Callable[[int, Answer], None],
) -> None:
    """Answer several conversations.

    Args:
        trained: As in `stream_answer`.
        model: As in `stream_answer`.
        conversations: Key -> conversation. The sampling of a key depends on nothing but the seed.
        settings: How the answers are generated.
        batch_size: Maximum number of answers at once.
        on_answer: Receives the key and the answer of each conversation.
    """
    support = trained.batch_support
    decoding = Decoding(
        settings.max_new_tokens,
        settings.create_sampler(list(conversations)),
        batch_size if support.left_padding else 1,
        support.cache,
        support.lines,
    )
    prompts = {
        key: encode_messages(trained, messages, settings.max_new_tokens) for key, messages in conversations.items()
    }
    longest_first = sorted(prompts, key=lambda key: -len(prompts[key]))
    with trained.autocast():
        generate_answers(
            model,
            trained.tokenizer,
            {key: prompts[key] for key in longest_first},
            stops=resolve_stops(trained.template, trained.tokenizer),
            decoding=decoding,
            on_answer=on_answer,
        )


def encode_messages(trained: TrainedModel, messages: Sequence[Message], max_new_tokens: int) -> list[int]:
    """Return the token ids of a prompt, truncated at the left so that the answer has room.

    Raises:
        HarnessError: The template refuses the conversation, or the answer leaves no room for a prompt.
    """
    room = trained.max_length - max_new_tokens
    if room < 1:
        what = f"{max_new_tokens} leaves no room for a prompt: the model has {trained.max_length} positions"
        raise HarnessError("--max-new-tokens", what, f"use less than {trained.max_length}")
    example = Example("prompt", (*messages, PLACEHOLDER), "the conversation")
    return encode_prompt(example, trained.template, trained.tokenizer, room)


def _stable_text(tokenizer: Any, tokens: Sequence[int], stops: StopConditions) -> str:
    """Return the text of the tokens without an incomplete character and without what may begin a stop."""
    text = truncate_at_stop(decode_tokens(tokenizer, tokens), stops.strings).rstrip("\ufffd")
    held_back = max(
        (length for stop in stops.strings for length in range(1, len(stop)) if text.endswith(stop[:length])), default=0
    )
    return text[: len(text) - held_back]
