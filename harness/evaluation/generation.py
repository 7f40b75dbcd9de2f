"""Batched generation of answers; a row leaves the batch as soon as its answer has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness.evaluation.padding_probe import forward_left_padded, pad_left
from harness.interfaces.template import Template
from harness.model.output_head import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TokenSampler = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Takes logits (B, V) and the key of each row, returns token ids (B,)."""


def greedy(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """Return the most likely token of each row, (B,)."""
    return logits.argmax(-1)


class TopPSampler:
    """Samples from the most likely tokens that together have the probability `top_p`.

    This is nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751). Each row has its own generator on the CPU, so
    its samples depend on neither the batch nor the device. Probabilities are computed in float64.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Mapping[int, int]) -> None:
        """Create the sampler.

        Args:
            temperature: Divides the logits; above 0.
            top_p: Probability mass to sample from, 0 to 1.
            seeds: Key of a row -> seed of its generator.
        """
        self._temperature, self._top_p = temperature, top_p
        self._generators = {key: torch.Generator().manual_seed(seed) for key, seed in seeds.items()}

    def __call__(self, logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
        """Return one sampled token per row, (B,)."""
        probabilities, tokens = (
            (logits.double() / self._temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        )  # (B, V) each
        cumulative = probabilities.cumsum(-1)  # (B, V)
        # A token is in the nucleus if the tokens before it have less than top_p: the most likely one always is.
        nucleus = (cumulative - probabilities) < self._top_p  # (B, V)
        nucleus_mass = (probabilities * nucleus).sum(-1, keepdim=True)  # (B, 1)
        uniform = [torch.rand((), generator=self._generators[key], dtype=torch.float64) for key in keys]
        threshold = torch.stack(uniform).to(logits.device)[:, None] * nucleus_mass  # (B, 1)
        rank = torch.searchsorted(cumulative, threshold, right=True).clamp(max=logits.shape[-1] - 1)
        last_rank = nucleus.sum(-1, keepdim=True) - 1  # rounding must not select a token outside the nucleus
        return tokens.gather(-1, torch.minimum(rank, last_rank))[:, 0]


@dataclass(frozen=True)
class StopConditions:
    """What ends an answer.

    Attributes:
        eos_id: The tokenizer's end-of-sequence token, if it has one.
        token_ids: Other tokens.
        strings: Texts.
    """

    eos_id: int | None
    token_ids: frozenset[int]
    strings: tuple[str, ...]


def resolve_stops(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    extra_stops: Sequence[str] = (),
    *,
    use_template_stops: bool = True,
) -> StopConditions:
    """Return what ends an answer: the template's stops, `extra_stops`, and the tokenizer's end-of-sequence token.

    A stop that is a single special or added token is compared as a token. Any other is compared as text, because a
    text can be tokenized in several ways.

    Args:
        template: The template of the prompts.
        tokenizer: The model's tokenizer.
        extra_stops: Stops of the suite.
        use_template_stops: False if prompts are not rendered by the template.
    """
    special_ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    token_ids = {**tokenizer.get_added_vocab(), **special_ids}
    stops = (*(template.stop_strings(tokenizer) if use_template_stops else ()), *extra_stops)
    stop_ids = frozenset(token_ids[stop] for stop in stops if stop in token_ids)
    stop_texts = tuple(stop for stop in stops if stop and stop not in token_ids)
    return StopConditions(tokenizer.eos_token_id, stop_ids - {tokenizer.eos_token_id}, stop_texts)


def decode_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of an answer's tokens without special tokens, with spaces as the model wrote them."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def completes_stop_string(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop_strings: Sequence[str]
) -> bool:
    """Return whether the last token completes one of the strings. Only the last tokens are decoded."""
    if not stop_strings:
        return False
    # A token has at least one byte. 8 more allow for special tokens in between and a partial first character.
    tail_length = max(len(text.encode()) for text in stop_strings) + 8
    tail = decode_tokens(tokenizer, tokens[-tail_length:])
    return any(text in tail for text in stop_strings)


def truncate_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Return the text before the first of the strings."""
    positions = [position for position in map(text.find, stop_strings) if position >= 0]
    return text[: min(positions)] if positions else text


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: The text before the stop.
        finish: `eos`, `stop`, `length`, or `empty` for a blank text.
        token_count: Number of generated tokens, including the one that ended the answer.
    """

    text: str
    finish: str
    token_count: int


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer are selected.

    Attributes:
        max_new_tokens: Maximum number of tokens of an answer.
        sampler: Selects the next token of each row.
        use_cache: Whether keys and values are cached. Without a cache each token costs a complete forward pass.
    """

    max_new_tokens: int
    sampler: TokenSampler = greedy
    use_cache: bool = True


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, Sequence[int]],
    *,
    stops: StopConditions,
    decoding: Decoding,
    on_answer: Callable[[int, Answer], None],
) -> None:
    """Generate the answers of one batch of prompts.

    The model's generation config is not used. A row that has ended is removed from the batch and its cache, so the
    cost depends on unfinished rows only:

        step 0    [pad pad p p p]  [pad p p p p]  [p p p p p]     (B, T): left-padded prompts
        step 1    [a]              [a]            [a]             (B, 1) each, with cache
        step 2    [a]              ended          [a]             the second row has left the batch

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Key -> token ids. Padding is masked, so answers do not depend on the batch, up to rounding.
        stops: What ends an answer.
        decoding: How the tokens of an answer are selected.
        on_answer: Receives the key and the answer of each prompt as soon as it has ended.
    """
    device = next(model.parameters()).device
    ids, mask = pad_left(list(prompts.values()), tokenizer.pad_token_id)
    is_padded = not bool(mask.all())
    ids, mask = ids.to(device), mask.to(device)  # (B, T)
    live = list(prompts)
    answers: dict[int, list[int]] = {key: [] for key in live}
    cache: Any = None
    for _ in range(decoding.max_new_tokens):
        last = torch.zeros_like(ids, dtype=torch.bool)
        last[:, -1] = True
        with logits_at(model, last) if ids.shape[1] > 1 else nullcontext():
            output = forward_left_padded(model, ids, mask, cache, use_cache=decoding.use_cache, is_padded=is_padded)
        cache = output.past_key_values if decoding.use_cache else None
        chosen = decoding.sampler(output.logits.reshape(len(live), -1), live)  # (B,)
        unfinished = []  # rows of the batch
        for row, (key, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            answers[key].append(token)
            finish = _finish_reason(tokenizer, answers[key], stops, decoding.max_new_tokens)
            if finish:
                on_answer(key, _build_answer(tokenizer, answers[key], finish, stops))
            else:
                unfinished.append(row)
        if not unfinished:
            return
        if len(unfinished) < len(live):
            rows = torch.tensor(unfinished, device=device)
            if decoding.use_cache:
                cache.reorder_cache(rows)
            ids, chosen, mask, live = ids[rows], chosen[rows], mask[rows], [live[row] for row in unfinished]
        new = chosen[:, None]  # (B, 1)
        ids = new if decoding.use_cache else torch.cat([ids, new], dim=1)
        mask = torch.cat([mask, mask.new_ones((len(live), 1))], dim=1)  # one column more


def _finish_reason(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: StopConditions, max_new_tokens: int
) -> str:
    """Return why the answer ends with its last token; "" if it does not end."""
    if tokens[-1] == stops.eos_id:
        return "eos"
    if tokens[-1] in stops.token_ids or completes_stop_string(tokenizer, tokens, stops.strings):
        return "stop"
    return "length" if len(tokens) == max_new_tokens else ""


def _build_answer(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], finish: str, stops: StopConditions
) -> Answer:
    ended_by_token = tokens[-1] == stops.eos_id or tokens[-1] in stops.token_ids
    text = truncate_at_stop(decode_tokens(tokenizer, tokens[:-1] if ended_by_token else tokens), stops.strings)
    return Answer(text, finish if text.strip() else "empty", len(tokens))
