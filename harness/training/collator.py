"""Turn packed sequences of tokenized rows into the tensors of a batch; both engines use it.

The trainer decides which sequences form a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from harness.data.mixing.packing import PackedSequences
from harness.model import row_attention
from harness.types import IGNORE_INDEX, TokenizedExample


class Collator:
    """Collates packed sequences, named by their index, to a batch of `input_ids`, `labels` and a mask or positions.

    One row per sequence: rows padded on the right with an `attention_mask`; every tensor has the shape (B, T).

        input_ids        a0  a1  a2  a3          labels of a row's first token are ignored:
                         b0  b1  pad pad         no token of the same row predicts it
        attention_mask    1   1   1   1
                          1   1   0   0

    Several rows per sequence: rows one after the other, with `position_ids` that restart at each row, and no
    `attention_mask`. From the positions transformers builds a block-diagonal mask. The padding at the end forms a block
    of its own.

        input_ids        a0  a1  a2  b0  b1  pad
        position_ids      0   1   2   0   1   0
        visible to b1                 x   x

    With `flatten`, all rows of a batch form a single line, (1, T), with `position_ids` and without padding. Attention
    that separates the rows of a line needs this. With `boundaries` too, FlashAttention gets the places where the rows
    begin and end, so that no layer searches `position_ids` for it, which waits for the device:

        cu_seq_lens_q, cu_seq_lens_k    0  3  5      where the rows begin and where the last one ends, int32
        max_length_q, max_length_k      3            tokens of the longest row, an int
    """

    def __init__(
        self,
        rows: Sequence[TokenizedExample],
        sequences: Sequence[Sequence[int]],
        pad_id: int,
        flatten: bool = False,
        boundaries: bool = False,
    ) -> None:
        """Prepare to collate.

        Args:
            rows: As `StageDataset.rows`; a row is built when its batch is.
            sequences: The row indices of each packed sequence, as `StageDataset.order`. A sequence without rows becomes
                one untrained token: it fills the last batch when several processes share it.
            pad_id: The padding token.
            flatten: Whether all rows of a batch form a single line.
            boundaries: Whether such a batch has the boundaries of its rows, as transformers' FlashAttention takes them.
        """
        self.rows, self.sequences, self.pad_id = rows, PackedSequences.from_sequences(sequences), pad_id
        self.packed = flatten or bool((self.sequences.rows_per_sequence > 1).any())
        self.flatten, self.boundaries = flatten, flatten and boundaries

    def __call__(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the batch of the packed sequences with these indices."""
        lines = [[self.rows[row_index] for row_index in self.sequences[index]] for index in indices]
        if self.flatten:
            lines = [[row for line in lines for row in line]]
        shape = len(lines), max(1, *(sum(len(row.input_ids) for row in line) for line in lines))  # (B, T)
        input_ids = torch.full(shape, self.pad_id)
        labels = torch.full(shape, IGNORE_INDEX)
        positions = torch.zeros(shape, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        for line_index, line in enumerate(lines):
            start = 0
            for row in line:
                end = start + len(row.input_ids)
                input_ids[line_index, start:end] = torch.tensor(row.input_ids)
                labels[line_index, start + 1 : end] = torch.tensor(row.labels[1:], dtype=torch.long)
                positions[line_index, start:end] = torch.arange(end - start)
                start = end
            positions[line_index, start:] = torch.arange(shape[1] - start)
            # The softmax of a line without any visible token is undefined: an empty sequence keeps one visible.
            mask[line_index, : max(start, 1)] = 1
        separation: dict[str, Any] = {"position_ids": positions} if self.packed else {"attention_mask": mask}
        if self.boundaries:
            lengths = [len(row.input_ids) for row in lines[0]] or [shape[1]]
            separation |= row_boundaries(lengths)
        return {"input_ids": input_ids, "labels": labels, **separation}


def row_boundaries(lengths: Sequence[int], device: torch.device | None = None) -> dict[str, Any]:
    """Return the boundaries of the rows of a line, as transformers' FlashAttention takes them; see `Collator`.

    Args:
        lengths: The tokens of each row.
        device: Where the tensors are stored; None: the CPU.
    """
    ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends.clone(), "max_length_q": longest, "max_length_k": longest}


def separates_rows(model: Any) -> bool:
    """Return whether the model now attends within the rows of a line, so that `flatten` can be used."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == row_attention.NAME


def pad_with_empty_sequences(sequences: Sequence[Sequence[int]], multiple: int) -> PackedSequences:
    """Append empty packed sequences until their number is a multiple of `multiple`.

    Several processes take complete batches in turn. Without empty sequences, accelerate would train the stage's first
    rows a second time to fill the last batches.
    """
    return PackedSequences.from_sequences(sequences).pad_to_multiple(multiple)
