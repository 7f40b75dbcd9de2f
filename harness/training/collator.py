"""From slots of tokenised rows to the tensors of a batch; the same for both engines.

Knows padding and packing. Knows no order: which slots come together is the trainer's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.data.mixing.packing import PackedSequences
from harness.types import TokenizedExample

IGNORE_INDEX = -100
"""The label of a position that is not trained."""


class Collator:
    """Slots by their index -> a batch of `input_ids`, `labels` and what keeps tokens apart that must not meet.

    One row a slot: rows padded on the right, with an `attention_mask`, each tensor of shape (B, T).
    Several rows a slot: rows one after the other, with `position_ids` that start anew at every row and no
    `attention_mask`; from these transformers builds a block-diagonal mask. The padding at the end is a member of its
    own, and no row's first token is trained, since what stands before it belongs to another row.

    rows, sequences: as in `StageDataset.rows` and `StageDataset.order`; rows are made batch by batch. A slot without
    rows is one untrained token: it fills up the last batch when several processes share it. pad_id: the token that
    padding is made of.
    flatten: several rows a slot are put into one line, (1, T) without padding, slot after slot: what kernels for rows
    of various lengths want.
    """

    def __init__(
        self, rows: Sequence[TokenizedExample], sequences: Sequence[Sequence[int]], pad_id: int, flatten: bool = False
    ) -> None:
        self.rows, self.sequences, self.pad_id = rows, PackedSequences.from_sequences(sequences), pad_id
        self.packed = bool((self.sequences.rows_per_sequence > 1).any())
        self.flatten = flatten and self.packed

    def __call__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch of the slots with these indices."""
        members = [[self.rows[row] for row in self.sequences[index]] for index in indices]
        if self.flatten:
            members = [[row for slot in members for row in slot]]
        width = max(1, *(sum(len(row.input_ids) for row in slot) for slot in members))
        ids = torch.full((len(members), width), self.pad_id)
        labels = torch.full((len(members), width), IGNORE_INDEX)
        positions = torch.zeros((len(members), width), dtype=torch.long)
        mask = torch.zeros((len(members), width), dtype=torch.long)
        for line, slot in enumerate(members):
            start = 0
            for row in slot:
                end = start + len(row.input_ids)
                ids[line, start:end] = torch.tensor(row.input_ids)
                labels[line, start + 1 : end] = torch.tensor(row.labels[1:], dtype=torch.long)
                positions[line, start:end] = torch.arange(end - start)
                start = end
            positions[line, start:] = torch.arange(width - start)
            # A line on which nothing may be seen has no softmax: a slot without rows keeps one token visible.
            mask[line, : max(start, 1)] = 1
        apart = {"position_ids": positions} if self.packed else {"attention_mask": mask}
        return {"input_ids": ids, "labels": labels, **apart}


def pad_with_empty_sequences(sequences: Sequence[Sequence[int]], multiple: int) -> PackedSequences:
    """The slots and as many empty ones as make their number a multiple of `multiple`.

    With several processes each takes whole batches in turn; without filling, accelerate would train the first rows
    of the stage a second time to even out the last batches.
    """
    return PackedSequences.from_sequences(sequences).pad_to_multiple(multiple)
