"""Find out, before a model answers, whether padding changes its answers and whether its cache is usable.

Most models ignore masked padding. Some do not: recurrent layers carry it in their state, and the cache of some linear
attention does not follow rows that leave the batch. Their answers would depend on the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from harness.errors import HarnessError
from harness.evaluation.batch_support import FULL_SUPPORT, BatchSupport
from harness.model.device import is_out_of_memory
from harness.model.position_limit import config_as_dict, position_limit
from harness.model.row_attention import row_attention, supports_row_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_Logits = TypeVar("_Logits")

PROBE_TEXTS = ("What is two plus two?", "Name one of the long rivers of Europe, and say in which country it ends.")
"""The probe rows, short and long. The short one is padded to the length of the long one."""

PROBE_STEPS = 3
"""Tokens after the short row that are computed with the cache."""

TOLERANCE = 1e-3
"""Largest change of the logits by padding, as a fraction of how much the logits of the two rows differ."""
TOLERANCE_16_BIT = 0.2
"""The same for 16-bit arithmetic, whose rounding alone can choose another expert."""

ROUNDING_TOLERANCE = 1e-5
"""Additional tolerance, as a fraction of the logits."""


@torch.no_grad()
def probe_batch_support(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BatchSupport:
    """Run two short rows alone and padded together, and compare the logits of the short one.

    With rows a (short) and b (long), and c the tokens that follow a, these logits must agree:

        alone        a c            complete forward pass, without cache or padding
        cached       a, then c      with the cache
        left         [pad a]  then c          right    [a c pad]
                     [  b  ]  leaves                   [   b   ]
        line         b   a c   and c again as a branch of a, if the model can have `row_attention`

    The cost is 8 to 11 forward passes of at most 80 tokens.

    Args:
        model: A causal language model, within its autocast if it has one.
        tokenizer: The model's tokenizer.

    Raises:
        HarnessError: The model cannot compute a row.
    """
    was_training = model.training
    model.eval()
    try:
        return _probe(model, tokenizer)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"{type(model).__name__} cannot compute a row of ordinary length: {text}"
        raise HarnessError(
            "model.path", what, "give a causal language model that transformers runs by itself"
        ) from error
    finally:
        model.train(was_training)


def accepts_argument(model: Any, name: str) -> bool:
    """Return whether the forward pass of a model, or of the model inside a PEFT model, has a parameter of this name."""
    base = getattr(model, "get_base_model", lambda: model)()
    return name in inspect.signature(base.forward).parameters


def forward_left_padded(
    model: PreTrainedModel, ids: Tensor, mask: Tensor, cache: Any, *, use_cache: bool, is_padded: bool
) -> Any:
    """Return the model's output for left-padded rows.

    Without padding the model numbers the positions itself, as in training: some do not start at 0 (RoBERTa).

    Args:
        model: A causal language model.
        ids: The tokens that are not in the cache, (B, t).
        mask: The mask of all tokens, (B, T).
        cache: The cache of the earlier tokens; None without one.
        use_cache: Whether to use the cache and to return it.
        is_padded: Whether a row of the batch was padded.
    """
    arguments: dict[str, Any] = {"past_key_values": cache} if use_cache else {}
    if is_padded and accepts_argument(model, "position_ids"):  # other models (ALiBi) derive positions from the mask
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return model(input_ids=ids, attention_mask=mask, use_cache=use_cache, **arguments)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of left-padded rows and their mask, (B, T) each."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)  # (B, T)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)  # (B, T)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = 1
    return ids, mask


def _probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> BatchSupport:
    embedding: Any = model.get_input_embeddings()
    short, long = (_encode(tokenizer, text, embedding.weight.shape[0]) for text in PROBE_TEXTS)
    limit = position_limit(config_as_dict(model.config))
    if limit is not None:
        short, long = short[: limit.positions // 4], long[: limit.positions // 2]
    if not short or len(long) <= PROBE_STEPS:
        return FULL_SUPPORT
    # c: the end of the long row, so that each logit of a c is one that the model may get
    row, device = [*short, *long[-PROBE_STEPS:]], next(model.parameters()).device
    pad_id = tokenizer.pad_token_id
    alone = _complete_logits(model, [row], 0, device, pad_id)[-PROBE_STEPS - 1 :]  # (S + 1, V)
    other = _complete_logits(model, [long], 0, device, pad_id)[-PROBE_STEPS - 1 :]  # (S + 1, V)
    tolerance = TOLERANCE if alone.dtype == torch.float32 and not _is_autocast(device) else TOLERANCE_16_BIT
    largest = float((alone - other).abs().max()) * tolerance + float(alone.abs().max()) * ROUNDING_TOLERANCE

    def agrees(logits: Tensor | None) -> bool:
        return logits is not None and not float((logits - alone).abs().max()) > largest  # NaN counts as equal

    right = _right_padded_logits(model, row, [*long, *long], device, pad_id)
    right_padding = agrees(right[-PROBE_STEPS - 1 :])
    # A cache may not follow rows that leave the batch (MiniMax).
    cache = agrees(_try_logits(lambda: _cached_logits(model, [short], row, device, pad_id)))
    if cache:
        left = _try_logits(lambda: _cached_logits(model, [short, [*long, *long]], row, device, pad_id))
    else:
        left = _complete_logits(model, [row, [*long, *long]], 0, device, pad_id)[-PROBE_STEPS - 1 :]
    on_line = _try_logits(lambda: _line_logits(model, long, short, row[len(short) :], device))
    return BatchSupport(
        cache=cache,
        left_padding=agrees(left),
        right_padding=right_padding,
        lines=on_line is not None and all(map(agrees, on_line)),
    )


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, embedding_rows: int) -> list[int]:
    return [token for token in tokenizer(text)["input_ids"] if token < embedding_rows]


def _complete_logits(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], index: int, device: torch.device, pad_id: int
) -> Tensor:
    """Return the logits of a left-padded row, (T, V), from a forward pass without cache."""
    ids, mask = (tensor.to(device) for tensor in pad_left(rows, pad_id))
    logits: Tensor = forward_left_padded(model, ids, mask, None, use_cache=False, is_padded=len(rows) > 1).logits
    return logits[index, ids.shape[1] - len(rows[index]) :].float()


def _right_padded_logits(
    model: PreTrainedModel, row: Sequence[int], longer: Sequence[int], device: torch.device, pad_id: int
) -> Tensor:
    """Return the logits of the shorter row of a right-padded batch, (T, V), as likelihoods are computed."""
    ids = torch.tensor([[*row, *[pad_id] * (len(longer) - len(row))], list(longer)], device=device)
    mask = torch.ones_like(ids)
    mask[0, len(row) :] = 0
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[0, : len(row)].float()


def _line_logits(
    model: PreTrainedModel, before: Sequence[int], short: Sequence[int], rest: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Return the logits of `rest` after `short`, (S + 1, V), from a line: those of the row, and those of its branch.

    None if the model cannot have `row_attention`.
    """
    if not supports_row_attention(model, len(before)) or not accepts_argument(model, "position_ids"):
        return None
    ids = [*before, *short, *rest, *rest]
    row = [*range(len(short) + len(rest))]
    positions = [*range(len(before)), *row, *row[len(short) :]]
    with row_attention(model):
        output = model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
        )
    last_shared = len(before) + len(short) - 1
    logits = output.logits[0, last_shared:].float()
    branch = [0, *range(len(rest) + 1, 2 * len(rest) + 1)]
    return logits[: len(rest) + 1], logits[branch]


def _try_logits(compute: Callable[[], _Logits | None]) -> _Logits | None:
    """Return the logits; None if the model cannot compute them in this way."""
    try:
        return compute()
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return None


def _cached_logits(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], row: Sequence[int], device: torch.device, pad_id: int
) -> Tensor | None:
    """Return the logits of the first prompt and of the rest of `row` after it, (S + 1, V), step by step.

    After the first step the other prompts leave the batch. None if the model has no usable cache.
    """
    if not accepts_argument(model, "past_key_values"):
        return None
    ids, mask = (tensor.to(device) for tensor in pad_left(prompts, pad_id))
    cache: Any = None
    logits = []
    for step in range(len(row) - len(prompts[0]) + 1):
        output = forward_left_padded(model, ids, mask, cache, use_cache=True, is_padded=len(prompts) > 1)
        cache = getattr(output, "past_key_values", None)
        if not hasattr(cache, "reorder_cache"):
            return None
        logits.append(output.logits[0, -1].float())
        if step == 0 and len(prompts) > 1:
            cache.reorder_cache(torch.tensor([0], device=device))
            mask = mask[:1]
        if step < len(row) - len(prompts[0]):
            ids = torch.tensor([[row[len(prompts[0]) + step]]], device=device)
            mask = torch.cat([mask, mask.new_ones((1, 1))], dim=1)
    return torch.stack(logits)


def _is_autocast(device: torch.device) -> bool:
    return bool(torch.is_autocast_enabled(device.type))
