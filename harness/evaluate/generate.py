"""Answers to prompts: batched, with rows leaving the batch as soon as they have ended."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.evaluate.choosing import Choose, likeliest
from harness.evaluate.head import head_at
from harness.evaluate.stops import Stops, cut, decode, holds_stop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """text: up to the stop, which is not part of it. finish: `eos`, `stop`, `length`, or `empty` for a blank text.

    tokens: how many were generated, the one that ended it included.
    """

    text: str
    finish: str
    tokens: int


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, Sequence[int]],
    *,
    stops: Stops,
    max_new_tokens: int,
    finished: Callable[[int, Answer], None],
    choose: Choose = likeliest,
) -> None:
    """Answer one batch of prompts; `finished` gets each answer under its prompt's key, as it ends.

    prompts: key -> token ids, padded here at the left and masked, so that an answer does not depend on the batch
    (beyond rounding). Nothing of the model's generation config is used: no sampling, no penalties.
    choose: the next token of each row; the likeliest, unless told otherwise.
    A row that has ended leaves the batch and its cache; the batch costs what its unfinished rows cost.
    """
    device = next(model.parameters()).device
    ids, mask = _left_padded(list(prompts.values()), tokenizer.pad_token_id)
    ids, mask = ids.to(device), mask.to(device)  # (B, T)
    last = torch.zeros_like(mask, dtype=torch.bool)
    last[:, -1] = True
    numbered = _takes_positions(model)
    live = list(prompts)
    answers: dict[int, list[int]] = {key: [] for key in live}
    cache = None
    for step in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with head_at(model, last) if step == 0 else nullcontext():
            output = model(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **({"position_ids": positions} if numbered else {}),
            )
        cache = output.past_key_values
        chosen = choose(output.logits.reshape(len(live), -1), live)  # (B,)
        going = []  # slots of the batch that have not ended
        for slot, (key, token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            answers[key].append(token)
            finish = _finish(tokenizer, answers[key], stops, max_new_tokens)
            if finish:
                finished(key, _answer(tokenizer, answers[key], finish, stops))
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


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad)  # (B, T)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)  # (B, T)
    for index, prompt in enumerate(prompts):
        ids[index, longest - len(prompt) :] = torch.tensor(prompt)
        mask[index, longest - len(prompt) :] = 1
    return ids, mask


def _takes_positions(model: PreTrainedModel) -> bool:
    """Whether the model is told each token's position; models without (ALiBi) take them from the mask."""
    base = getattr(model, "get_base_model", lambda: model)()
    return "position_ids" in inspect.signature(base.forward).parameters


def _finish(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: Stops, max_new_tokens: int) -> str:
    """Why the answer ends with its newest token; empty while it goes on."""
    if tokens[-1] == stops.eos:
        return "eos"
    if tokens[-1] in stops.tokens or holds_stop(tokenizer, tokens, stops.texts):
        return "stop"
    return "length" if len(tokens) == max_new_tokens else ""


def _answer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], finish: str, stops: Stops) -> Answer:
    ended_by_token = tokens[-1] == stops.eos or tokens[-1] in stops.tokens
    text = cut(decode(tokenizer, tokens[:-1] if ended_by_token else tokens), stops.texts)
    return Answer(text, finish if text.strip() else "empty", len(tokens))
