"""Let a mode select and order the training rows of a stage, before they are mixed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.reading.corpus import CorpusView
from harness.data.tokenization.tokenize import TokenizedCorpus
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError
from harness.interfaces.mode import Mode
from harness.types import SourceRows, Stage

OrderKeys = dict[str, NDArray[Any]]
"""Source -> the key of each of its rows, (N,)."""


def choose_rows(
    mode: Mode, stage: Stage, tokenized: Mapping[str, TokenizedCorpus], examples: Mapping[str, CorpusView]
) -> tuple[dict[str, TokenizedRows], OrderKeys]:
    """Return the rows of each source of a stage that the mode selects, and the keys of their order.

    Args:
        mode: The mode of the run.
        stage: The stage.
        tokenized: Source -> its tokenized training rows at the stage's `max_length`.
        examples: Source -> its training conversations, of which some rows may have no tokens.

    Raises:
        HarnessError: The mode selects no row of a source, or orders rows that are packed.
    """
    if type(mode).select is Mode.select and type(mode).order is Mode.order:
        return {source: corpus.rows for source, corpus in tokenized.items()}, {}
    pools: dict[str, TokenizedRows] = {}
    keys: OrderKeys = {}
    for part in stage.sources:
        corpus = tokenized[part.source]
        pool, indices = corpus.rows, corpus.example_indices
        selected = mode.select(stage, _source_rows(part.source, pool, examples[part.source], indices))
        if selected is not None:
            chosen = np.flatnonzero(np.asarray(selected, bool))
            if not len(chosen):
                what = f"the mode selects none of the {len(pool)} rows of {part.source!r}"
                raise HarnessError(f"stage {stage.name}", what, "change the mode's options, or remove the source")
            pool, indices = pool.select(chosen), indices[chosen]
        pools[part.source] = pool
        order = mode.order(stage, _source_rows(part.source, pool, examples[part.source], indices))
        if order is not None:
            keys[part.source] = np.asarray(order, np.float64)
    if keys and stage.train["packing"]:
        what = "the mode orders the rows, but packing puts rows of all positions into one sequence"
        raise HarnessError(f"stage {stage.name}", what, "set train.packing to false")
    return pools, keys


def _source_rows(source: str, pool: TokenizedRows, examples: CorpusView, indices: NDArray[Any]) -> SourceRows:
    return SourceRows(source, pool.lengths.tolist(), pool.loss_tokens.tolist(), examples.select(indices))
