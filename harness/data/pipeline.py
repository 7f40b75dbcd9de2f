"""The work of tokenising a corpus, laid out so that Python and the tokenizer never wait for each other.

While the tokenizer's own threads work on one batch, the next is rendered and the one before is masked; whoever asks for
the batches proves and writes them. No more than a few batches are in memory at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from harness.contracts import Example, Template
from harness.data.markers import markers
from harness.data.mask import Masked, Run, mask, tokens
from harness.data.rendering import Rendering, rendered
from harness.errors import HarnessError

ROWS, CHARACTERS = 512, 500_000
"""Where a batch of a corpus ends: so many rows, or the row that reaches so many characters. Its tokens take about a
hundred bytes each until they are written."""

WORKERS, AHEAD = 2, 3
"""Batches that are tokenised at once (one waits for Python while the tokenizer works on the other), and begun early."""


def masked_batches(
    examples: Iterable[Example], template: Template, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[Example], list[Masked]]]:
    """The examples, batch by batch, with their whole rows; those before a bad one come before its error."""
    own = markers(tokenizer)
    own.ready()
    _ = own.widths  # found here, before the threads ask for it
    waiting: deque[tuple[list[Example], list[Rendering], Future[list[Encoding]]]] = deque()
    failure: HarnessError | None = None

    def first() -> tuple[list[Example], list[Masked]]:
        batch, renderings, encodings = waiting.popleft()
        return batch, mask(batch, renderings, encodings.result(), template, tokenizer)

    with ThreadPoolExecutor(WORKERS, "tokenise") as pool:
        for batch in batches(examples):
            renderings: list[Rendering] = []
            try:
                for example in batch:
                    renderings.append(rendered(example, template, tokenizer))
            except HarnessError as error:
                failure = error
            waiting.append((batch[: len(renderings)], renderings, pool.submit(tokens, renderings, tokenizer)))
            if failure is not None:
                break
            if len(waiting) > AHEAD:
                yield first()
        while waiting:
            yield first()
    if failure is not None:
        raise failure


def batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples, as many at a time as `ROWS` and `CHARACTERS` say."""
    batch: list[Example] = []
    size = 0
    for example in examples:
        batch.append(example)
        for message in example.messages:
            size += len(message.content) + len(message.input or "")
        if len(batch) == ROWS or size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def stored(
    examples: Sequence[Example], rows: Sequence[Masked], max_length: int, first: int
) -> tuple[NDArray[np.int32], dict[str, list[int]]]:
    """What `Writer.add` takes, of the rows that have a trained token left. first: index of the first example."""
    facts: dict[str, list[int]] = {name: [] for name in ("ids", "kept", "lengths", "loss_tokens", "cut")}
    parts: list[list[int]] = []
    runs: list[Run] = []
    place = 0
    for index, (example, row) in enumerate(zip(examples, rows, strict=True), first):
        whole = len(row.ids)
        length = min(whole, max_length)
        # The first token of a row is predicted from nothing, so it never counts.
        loss = sum(max(min(end, length) - max(begin, 1), 0) for begin, end in row.runs)
        if not loss:
            continue
        facts["ids"].append(int(example.id, 16))
        facts["kept"].append(index)
        facts["lengths"].append(length)
        facts["loss_tokens"].append(loss)
        facts["cut"].append(whole - length)
        parts.append(row.ids if length == whole else row.ids[:length])
        runs += [(place + begin, place + min(end, length)) for begin, end in row.runs if begin < length]
        place += length
    flat = np.fromiter(chain.from_iterable(parts), np.int32, place)
    folded = ~flat
    for begin, end in runs:
        folded[begin:end] = flat[begin:end]
    return folded, facts
