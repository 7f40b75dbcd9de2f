"""Conversations → token ids and labels: a few at a time in memory, or a whole corpus on disk, proven on the way."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from harness.data.tokenization import token_cache
from harness.data.tokenization.fingerprints import CANONICAL, Unidentified, fingerprint, identity
from harness.data.tokenization.label_mask import Encoded, Masked, Run, mask, tokens
from harness.data.tokenization.mask_verification import Prover
from harness.data.tokenization.prompts import encode_prompt, prompt_tokens
from harness.data.tokenization.rendering import Rendering, name_of, rendered
from harness.data.tokenization.special_tokens import markers
from harness.data.tokenization.token_file import Contents
from harness.data.tokenization.tokenized_rows import Rows
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Progress, Row, silent

__all__ = [
    "CANONICAL",
    "Encoded",
    "Tokenised",
    "encode",
    "encode_all",
    "encode_prompt",
    "fingerprint",
    "name_of",
    "prompt_tokens",
    "tokenise_corpus",
]

BATCH = 512
"""Rows that `encode_all` tokenises in one call."""


@dataclass(frozen=True)
class Tokenised:
    """A corpus in tokens.

    rows: those that have a trained token within `max_length`, in the corpus's order. kept: (N,) int64, the index of
    each among the examples. cut: (N,) int32, tokens that each lost at its right end. proven: rows whose masks were
    proven, which is every one, those left out included. cached: whether it was found in the cache. warnings: what a
    person should know.
    """

    rows: Rows
    kept: NDArray[np.int64]
    cut: NDArray[np.int32]
    proven: int
    cached: bool = False
    warnings: tuple[str, ...] = ()


def encode(
    example: Example, source: str, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Row:
    """One example as a row of at most `max_length` tokens, truncated at the right. Raises as `encode_all` does."""
    return encode_all([example], source, template, tokenizer, max_length)[0].row


def encode_all(
    examples: Sequence[Example],
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Progress = silent,
) -> list[Encoded]:
    """All examples as rows of at most `max_length` tokens, in order and in memory, each truncated at the right.

    The tokenizer's begin-of-sequence token stands first if it puts one there by itself, and never twice. Special tokens
    in the contents of messages are plain text. A plain text is trained whole, its end-of-sequence token included, but
    for its first token.
    Raises HarnessError, with the row's place, when a conversation does not end with a response, when a response is
    empty or none is marked as trained, when the template refuses it or renders nothing trainable, or when the tokenizer
    cannot tell special tokens in a message from the template's.
    """
    done: list[Encoded] = []
    for begin in range(0, len(examples), BATCH):
        batch = examples[begin : begin + BATCH]
        renderings = [rendered(example, template, tokenizer) for example in batch]
        rows = mask(batch, renderings, tokens(renderings, tokenizer), template, tokenizer)
        done += [_encoded(example, source, row, max_length) for example, row in zip(batch, rows, strict=True)]
        progress("tokenise", len(done), len(examples), source, "rows")
    return done


def tokenise_corpus(
    examples: Sequence[Example],
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    key: str | None = None,
    progress: Progress = silent,
) -> Tokenised:
    """A corpus as rows of at most `max_length` tokens, every mask proven. The tokens stand on disk, not in memory.

    examples: walked once, in order; their ids are 16 hex digits. key: a digest of all in them that can change a token;
    with it the result is kept in the cache, and taken from there when nothing has changed since. progress: phase
    `tokenise`, in rows.
    A cache that cannot be used is told in `warnings`; so is a full disk, after which the rows are held in memory.
    Raises HarnessError as `encode_all` does, and for the first row that is not proven (see `proof`).
    """
    warnings: list[str] = []
    entry = None if key is None else _entry(key, source, template, tokenizer, max_length, warnings)
    if entry is not None and (found := token_cache.read(entry, source)) is not None:
        progress("tokenise", len(examples), len(examples), f"{source}, from the cache", "rows")
        return _tokenised(found, cached=True)
    writer, refused = token_cache.writer()
    prover = Prover(template, tokenizer)
    done = 0
    for batch, rows in masked_batches(examples, template, tokenizer):
        prover.prove(batch, rows)
        writer.add(*stored(batch, rows, max_length, done))
        done += len(batch)
        progress("tokenise", done, len(examples), source, "rows")
    facts = {"proven": prover.proven}
    found = writer.contents(source, facts)
    if entry is not None:
        refused = refused or token_cache.keep(writer, entry, facts)
        if refused is not None:
            warnings.append(
                f"the tokens of {source!r} are not kept for the next run: {token_cache.folder()}: {refused}"
            )
    if writer.failure is not None and writer.holds:
        warnings.append(f"the tokens of {source!r} are held in memory, the disk takes no more: {writer.failure}")
    return _tokenised(found, warnings=tuple(warnings))


def _entry(
    key: str,
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    warnings: list[str],
) -> str | None:
    """The cache's key of a corpus; None, with a warning, when the template cannot be told from another one."""
    try:
        about = [key, max_length, identity(template, tokenizer)]
    except Unidentified as error:
        warnings.append(
            f"the tokens of {source!r} are not kept for the next run: the template {name_of(template)}: {error}"
        )
        return None
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _tokenised(found: Contents, *, cached: bool = False, warnings: tuple[str, ...] = ()) -> Tokenised:
    return Tokenised(found.rows, found.kept, found.cut, int(found.facts["proven"]), cached, warnings)


def _encoded(example: Example, source: str, row: Masked, max_length: int) -> Encoded:
    labels = [-100] * len(row.ids)
    for begin, end in row.runs:
        labels[begin:end] = row.ids[begin:end]
    cut = max(len(row.ids) - max_length, 0)
    return Encoded(Row(example.id, source, tuple(row.ids[:max_length]), tuple(labels[:max_length])), cut)


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
