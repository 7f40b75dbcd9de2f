"""Batches of rows whose trained tokens are to be predicted: on one line without padding, or padded at the right.

Rows with a common beginning, such as a question with each of its choices, are one group. On a line the beginning is
computed once, and the rest of each row is a branch of it (see `harness.model.row_attention`):

    question q0 q1, choices "x2 x3 x4" and "y2 y3"       the last token of a row is only predicted
    input_ids      q0  q1  x2  x3  y2
    position_ids    0   1   2   3   2
    predicts        -  x2,y2 x3 x4  y3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from harness.model.output_head import logits_at
from harness.model.row_attention import row_attention
from harness.types import IGNORE_INDEX, TokenizedExample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RowGroup = tuple[TokenizedExample, ...]
"""Rows that begin alike; often a single row."""


@dataclass(frozen=True)
class RowBatch:
    """Rows of one forward pass. The last token of a row is only predicted, so it is not an input.

    Attributes:
        inputs: The tensors that the model is called with.
        on_line: Whether the rows are on one line.
        head_mask: Where the output head is applied, booleans (B, T).
        targets: The trained tokens, row after row, (N,).
        target_counts: Number of targets of each row.
        logit_rows: For each target, the row of `logits` that predicts it, (N,).
    """

    inputs: Mapping[str, torch.Tensor]
    on_line: bool
    head_mask: torch.Tensor
    targets: torch.Tensor
    target_counts: list[int]
    logit_rows: torch.Tensor

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        """Return the logits at the positions before trained tokens, (U, V), in float32."""
        device = next(model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        with torch.no_grad(), logits_at(model, self.head_mask):
            if self.on_line:
                with row_attention(model):
                    output = model(**inputs, use_cache=False)
            else:
                output = model(**inputs, use_cache=False)
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def split_by_row(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """Split one value per trained token, (N,), into one float64 tensor per row."""
        return torch.split(values.double().cpu(), self.target_counts)


def build_padded_batch(groups: Sequence[RowGroup], pad_id: int) -> RowBatch:
    """Return the rows of the groups padded at the right with `pad_id`; padding is masked."""
    rows = [row for group in groups for row in group]
    longest = max(len(row.input_ids) for row in rows) - 1
    ids = torch.full((len(rows), longest), pad_id)  # (B, T)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)  # (B, T)
    labels = torch.full((len(rows), longest), IGNORE_INDEX)  # (B, T): of the token after each
    for index, row in enumerate(rows):
        length = len(row.input_ids) - 1
        ids[index, :length] = torch.tensor(row.input_ids[:-1])
        mask[index, :length] = 1
        labels[index, :length] = torch.tensor(row.labels[1:])
    head_mask = labels != IGNORE_INDEX  # (B, T)
    targets = labels[head_mask]  # (N,)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return RowBatch(inputs, False, head_mask, targets, head_mask.sum(1).tolist(), torch.arange(len(targets)))


def build_line_batch(groups: Sequence[RowGroup]) -> RowBatch:
    """Return the rows of the groups on one line, with the common beginning of each group once."""
    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    sources: list[int] = []  # for each target, the index on the line that predicts it
    counts: list[int] = []
    for group in groups:
        shared, start = shared_tokens(group), len(ids)
        ids += group[0].input_ids[:shared]
        positions += range(shared)
        for row in group:
            branch_start = len(ids) - shared  # index on the line of a token of the branch, less its position
            ids += row.input_ids[shared:-1]
            positions += range(shared, len(row.input_ids) - 1)
            predicted = [index for index in range(1, len(row.labels)) if row.labels[index] != IGNORE_INDEX]
            targets += [row.labels[index] for index in predicted]
            sources += [(start if index <= shared else branch_start) + index - 1 for index in predicted]
            counts.append(len(predicted))
    head_mask = torch.zeros((1, len(ids)), dtype=torch.bool)
    head_mask[0, sources] = True
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}
    return RowBatch(inputs, True, head_mask, torch.tensor(targets), counts, head_mask[0].cumsum(0)[sources] - 1)


def shared_tokens(group: RowGroup) -> int:
    """Return the number of tokens at the beginning of the rows that are computed once."""
    if len(group) == 1:
        return 0
    columns = zip(*(row.input_ids[:-1] for row in group), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def line_tokens(group: RowGroup) -> int:
    """Return the number of tokens of a group on a line."""
    shared = shared_tokens(group)
    return shared + sum(len(row.input_ids) - 1 - shared for row in group)
