"""Answers to prompts: batched, with rows leaving the batch as soon as they have ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.interfaces.template import Template
from harness.model.output_head import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TokenSampler = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Logits (B, V) and the key of each row -> token ids (B,)."""


def greedy(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """The token of the highest logit in each row."""
    return logits.argmax(-1)


class TopPSampler:
    """Draws by temperature from the likeliest tokens that hold `top_p` of the probability (Holtzman et al., 2020,
    arXiv:1904.09751).

    seeds: by the keys of the rows. Each row has a generator of its own on the CPU, so what is drawn for it depends on
    neither the batch nor the device. Probabilities are taken in float64.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Mapping[int, int]) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._generators = {key: torch.Generator().manual_seed(seed) for key, seed in seeds.items()}

    def __call__(self, logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
        chances, tokens = (logits.double() / self._temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        sums = chances.cumsum(-1)  # (B, V)
        # A token stays while those before it do not yet hold top_p: the likeliest always does.
        kept = (sums - chances) < self._top_p
        held = (chances * kept).sum(-1, keepdim=True)
        at = [torch.rand((), generator=self._generators[key], dtype=torch.float64) for key in keys]
        drawn = torch.stack(at).to(logits.device)[:, None] * held  # (B, 1)
        place = torch.searchsorted(sums, drawn, right=True).clamp(max=logits.shape[-1] - 1)
        last = kept.sum(-1, keepdim=True) - 1  # rounding must not lead out of what is kept
        return tokens.gather(-1, torch.minimum(place, last))[:, 0]


@dataclass(frozen=True)
class StopConditions:
    """eos_id: the tokenizer's end of sequence, if it has one. token_ids: others that end an answer. strings: texts."""

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
    """What ends an answer: the template's stops, `extra_stops`, and the tokenizer's end of sequence; nothing is
    implied.

    use_template_stops: False where prompts are not rendered by the template.

    A stop that is a token of its own (special, or added whole) is watched for as that token; any other as text,
    since ordinary text can be made up of tokens in several ways.
    """
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    whole = {**tokenizer.get_added_vocab(), **special}
    given = (*(template.stop_strings(tokenizer) if use_template_stops else ()), *extra_stops)
    tokens = frozenset(whole[stop] for stop in given if stop in whole)
    texts = tuple(stop for stop in given if stop and stop not in whole)
    return StopConditions(tokenizer.eos_token_id, tokens - {tokenizer.eos_token_id}, texts)


def decode_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, special ones left out, spaces as the model wrote them."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def completes_stop_string(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop_strings: Sequence[str]
) -> bool:
    """Whether the newest token completes one of the strings. Looks at the last tokens alone, whatever the length."""
    if not stop_strings:
        return False
    # A token holds a byte or more; the slack is for special tokens between, and a first one that is half a character.
    reach = max(len(text.encode()) for text in stop_strings) + 8
    tail = decode_tokens(tokenizer, tokens[-reach:])
    return any(text in tail for text in stop_strings)


def truncate_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first of the strings."""
    found = [place for place in map(text.find, stop_strings) if place >= 0]
    return text[: min(found)] if found else text


@dataclass(frozen=True)
class Answer:
    """text: up to the stop, which is not part of it. finish: `eos`, `stop`, `length`, or `empty` for a blank text.

    token_count: how many were generated, the one that ended it included.
    """

    text: str
    finish: str
    token_count: int


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, Sequence[int]],
    *,
    stops: StopConditions,
    max_new_tokens: int,
    on_answer: Callable[[int, Answer], None],
    sampler: TokenSampler = greedy,
) -> None:
    """Answer one batch of prompts; `on_answer` gets each answer under its prompt's key, as it ends.

    prompts: key -> token ids, padded here at the left and masked, so that an answer does not depend on the batch
    (beyond rounding). Nothing of the model's generation config is used: no sampling, no penalties.
    sampler: the next token of each row; the likeliest, unless told otherwise.
    A row that has ended leaves the batch and its cache; the batch costs what its unfinished rows cost.
    """
    device = next(model.parameters()).device
    ids, mask = _pad_left(list(prompts.values()), tokenizer.pad_token_id)
    ids, mask = ids.to(device), mask.to(device)  # (B, T)
    last = torch.zeros_like(mask, dtype=torch.bool)
    last[:, -1] = True
    numbered = _accepts_position_ids(model)
    live = list(prompts)
    answers: dict[int, list[int]] = {key: [] for key in live}
    cache = None
    for step in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with logits_at(model, last) if step == 0 else nullcontext():
            output = model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **({"position_ids": positions} if numbered else {}),
            )
        cache = output.past_key_values
        chosen = sampler(output.logits.reshape(len(live), -1), live)  # (B,)
        going = []  # slots of the batch that have not ended
        for slot, (key, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            answers[key].append(token)
            finish = _finish_reason(tokenizer, answers[key], stops, max_new_tokens)
            if finish:
                on_answer(key, _build_answer(tokenizer, answers[key], finish, stops))
            else:
                going.append(slot)
        if not going:
            return
        if len(going) < len(live):
            kept = torch.tensor(going, device=device)
            cache.reorder_cache(kept)
            chosen, mask, live = chosen[kept], mask[kept], [live[slot] for slot in going]
        ids = chosen[:, None]  # (B, 1)
        mask = torch.cat([mask, mask.new_ones((len(live), 1))], dim=1)


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad_id)  # (B, T)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)  # (B, T)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    return ids, mask


def _accepts_position_ids(model: PreTrainedModel) -> bool:
    """Whether the model is told each token's position; models without (ALiBi) take them from the mask."""
    base = getattr(model, "get_base_model", lambda: model)()
    return "position_ids" in inspect.signature(base.forward).parameters


def _finish_reason(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: StopConditions, max_new_tokens: int
) -> str:
    """Why the answer ends with its newest token; empty while it goes on."""
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
