"""Verify on a model that rows packed into one sequence cannot attend to each other.

Whether restarting `position_ids` separate rows depends on the attention implementation and on the model's code; some
only warn. So a packed stage first runs the model on a few tokens, in batches as the collator builds them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.errors import HarnessError
from harness.model import row_attention
from harness.model.precision import autocast_context
from harness.training.collator import Collator
from harness.training.loss import model_inputs
from harness.training.model_state import unwrap_peft_model
from harness.types import IGNORE_INDEX, TokenizedExample

PROBE_LENGTHS = (5, 7, 8)
"""Tokens of the probe rows: two different rows, each of which precedes the third one."""

TOLERANCE_BY_DTYPE = {torch.float32: 1e-3}
"""Largest change of the last row's logits, as a fraction of the change that attention across rows causes, by dtype."""
TOLERANCE_16_BIT = 0.05
"""The same for 16-bit dtypes, whose rounding alone is about 0.01."""

ROUNDING_TOLERANCE = 1e-5
"""Additional tolerance, as a fraction of the logits: without any attention, logits still change by rounding."""


def uses_varlen_attention(model: PreTrainedModel) -> bool:
    """Return whether the attention is a variable-length kernel, which needs rows in a single line.

    These are FlashAttention and `harness.model.row_attention`. They read from `position_ids` where a row starts only if
    the batch is a single line. Otherwise each line is one row to FlashAttention.
    """
    attention = getattr(model.config, "_attn_implementation", None) or ""
    return "flash" in attention or attention == row_attention.NAME


def takes_row_boundaries(model: PreTrainedModel) -> bool:
    """Return whether the model is called with the boundaries of its rows: FlashAttention, through `**kwargs`."""
    if "flash" not in (getattr(model.config, "_attn_implementation", None) or ""):
        return False
    parameters = inspect.signature(unwrap_peft_model(model).forward).parameters
    return any(each.kind is each.VAR_KEYWORD for each in parameters.values()) or "cu_seq_lens_q" in parameters


@contextmanager
def unpadded_batches(model: PreTrainedModel, settings: Mapping[str, Any], longest_row: int) -> Iterator[bool]:
    """Let the model train without padding for the duration of the context, if it can.

    Args:
        model: The model.
        settings: The stage's `train`.
        longest_row: Tokens of the stage's longest row.

    Yields:
        Whether the rows of a batch are to be in a single line. It is verified on the model that they stay separate.

    Raises:
        HarnessError: Rows are packed, and this model does not separate them.
    """
    varlen = uses_varlen_attention(model)
    can_switch = not varlen and row_attention.supports_row_attention(model, longest_row)
    with row_attention.row_attention(model) if can_switch else nullcontext():
        with autocast_context(model, settings["precision"]):
            isolated = (varlen or can_switch) and rows_are_isolated(model)
        if isolated:
            yield True
    if isolated:
        return
    if settings["packing"]:
        with autocast_context(model, settings["precision"]):
            verify_packing_isolation(model)
    yield False


def verify_packing_isolation(model: PreTrainedModel) -> None:
    """Verify that packed rows do not attend to each other.

    Raises:
        HarnessError: They do.
    """
    if not rows_are_isolated(model):
        attention = getattr(model.config, "_attn_implementation", None) or "its own"
        others = [f'"{other}"' for other in ("sdpa", "eager") if other != attention]
        raise HarnessError(
            "train.packing",
            f"with attention '{attention}', packed rows attend to each other in a {model.config.model_type} model",
            f"set train.packing to false, or try model.attention {' or '.join(others)}",
        )


@torch.no_grad()
def rows_are_isolated(model: PreTrainedModel) -> bool:
    """Return whether a packed row gets the same logits as alone, wherever it is and whatever precedes it.

    With probe rows a, b and c, three ways to compute the logits of c must agree:

        line 0:  a c     c after a, separated by position_ids
        line 1:  b c     c after b, separated by position_ids
        alone:   c

    The tolerance is a fraction of how much these logits differ without separation. The cost is 4 forward passes of at
    most 30 tokens.
    """
    was_training = model.training
    model.eval()
    try:
        embedding: Any = model.get_input_embeddings()
        rows, flatten = _build_probe_rows(embedding.weight.shape[0]), uses_varlen_attention(model)
        collator = Collator(rows, [(0, 2), (1, 2)], 0, flatten=flatten, boundaries=takes_row_boundaries(model))
        packed = _logits(model, collator([0, 1]))  # (B, T, V)
        tolerance = TOLERANCE_BY_DTYPE.get(packed.dtype, TOLERANCE_16_BIT)
        first_end, second_end = PROBE_LENGTHS[0] + PROBE_LENGTHS[2], PROBE_LENGTHS[1] + PROBE_LENGTHS[2]
        ends = [(0, first_end), (0, first_end + second_end)] if flatten else [(0, first_end), (1, second_end)]
        packed_logits = [packed[line, end - PROBE_LENGTHS[2] : end].float() for line, end in ends]  # (8, V) each
        single_logits = _logits(model, Collator(rows, [(2,)], pad_id=0)([0]))[0].float()  # (8, V)
        unseparated_logits = [
            _logits(model, Collator([_concatenate_rows(rows[before], rows[2])], [(0,)], pad_id=0)([0]))[
                0, -PROBE_LENGTHS[2] :
            ].float()  # (8, V)
            for before in (0, 1)
        ]
    finally:
        model.train(was_training)
    allowed = tolerance * _max_abs_difference(*unseparated_logits)
    allowed += ROUNDING_TOLERANCE * float(single_logits.abs().max())
    differences = [_max_abs_difference(logits, single_logits) for logits in packed_logits]
    return max(_max_abs_difference(*packed_logits), *differences) <= allowed


def _build_probe_rows(vocabulary_size: int) -> list[TokenizedExample]:
    rows, start = [], 1
    for index, length in enumerate(PROBE_LENGTHS):
        ids = tuple(token % vocabulary_size for token in range(start, start + length))
        rows.append(TokenizedExample(f"{index:016x}", "probe", ids, (IGNORE_INDEX,) * length))
        start += length
    return rows


def _concatenate_rows(first: TokenizedExample, second: TokenizedExample) -> TokenizedExample:
    return TokenizedExample(first.id, first.source, first.input_ids + second.input_ids, first.labels + second.labels)


def _logits(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    device = next(model.parameters()).device
    inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    logits: Tensor = model(**model_inputs(inputs)).logits
    return logits


def _max_abs_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())
