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
from harness.data.tokenization.fingerprints import (
    CANONICAL_CONVERSATIONS,
    NotFingerprintable,
    template_fingerprint,
    tokenization_fingerprint,
)
from harness.data.tokenization.label_mask import (
    EncodedExample,
    MaskedTokens,
    TokenSpan,
    encode_renderings,
    mask_encodings,
)
from harness.data.tokenization.mask_verification import MaskVerifier
from harness.data.tokenization.prompts import encode_prompt, tokenize_prompt
from harness.data.tokenization.rendering import Rendering, render_training_text, template_name
from harness.data.tokenization.special_tokens import special_token_guard
from harness.data.tokenization.token_file import TokenFile
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Progress, TokenizedExample, no_progress

__all__ = [
    "CANONICAL_CONVERSATIONS",
    "EncodedExample",
    "TokenizedCorpus",
    "encode_example",
    "encode_examples",
    "encode_prompt",
    "template_fingerprint",
    "template_name",
    "tokenize_corpus",
    "tokenize_prompt",
]

ENCODE_BATCH_ROWS = 512
"""Rows that `encode_examples` tokenises in one call."""


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus in tokens.

    rows: those that have a trained token within `max_length`, in the corpus's order. kept: (N,) int64, the index of
    each among the examples. cut: (N,) int32, tokens that each lost at its right end. proven: rows whose masks were
    proven, which is every one, those left out included. cached: whether it was found in the cache. warnings: what a
    person should know.
    """

    rows: TokenizedRows
    example_indices: NDArray[np.int64]
    tokens_cut: NDArray[np.int32]
    rows_verified: int
    from_cache: bool = False
    warnings: tuple[str, ...] = ()


def encode_example(
    example: Example, source: str, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenizedExample:
    """One example as a row of at most `max_length` tokens, truncated at the right. Raises as `encode_examples` does."""
    return encode_examples([example], source, template, tokenizer, max_length)[0].row


def encode_examples(
    examples: Sequence[Example],
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Progress = no_progress,
) -> list[EncodedExample]:
    """All examples as rows of at most `max_length` tokens, in order and in memory, each truncated at the right.

    The tokenizer's begin-of-sequence token stands first if it puts one there by itself, and never twice. Special tokens
    in the contents of messages are plain text. A plain text is trained whole, its end-of-sequence token included, but
    for its first token.
    Raises HarnessError, with the row's place, when a conversation does not end with a response, when a response is
    empty or none is marked as trained, when the template refuses it or renders nothing trainable, or when the tokenizer
    cannot tell special tokens in a message from the template's.
    """
    done: list[EncodedExample] = []
    for begin in range(0, len(examples), ENCODE_BATCH_ROWS):
        batch = examples[begin : begin + ENCODE_BATCH_ROWS]
        renderings = [render_training_text(example, template, tokenizer) for example in batch]
        rows = mask_encodings(batch, renderings, encode_renderings(renderings, tokenizer), template, tokenizer)
        done += [
            _to_encoded_example(example, source, row, max_length) for example, row in zip(batch, rows, strict=True)
        ]
        progress("tokenise", len(done), len(examples), source, "rows")
    return done


def tokenize_corpus(
    examples: Sequence[Example],
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    content_digest: str | None = None,
    progress: Progress = no_progress,
) -> TokenizedCorpus:
    """A corpus as rows of at most `max_length` tokens, every mask proven. The tokens stand on disk, not in memory.

    examples: walked once, in order; their ids are 16 hex digits. key: a digest of all in them that can change a token;
    with it the result is kept in the cache, and taken from there when nothing has changed since. progress: phase
    `tokenise`, in rows.
    A cache that cannot be used is told in `warnings`; so is a full disk, after which the rows are held in memory.
    Raises HarnessError as `encode_examples` does, and for the first row that is not proven (see `mask_verification`).
    """
    warnings: list[str] = []
    entry = (
        None
        if content_digest is None
        else _cache_key(content_digest, source, template, tokenizer, max_length, warnings)
    )
    if entry is not None and (found := token_cache.load_cached_tokens(entry, source)) is not None:
        progress("tokenise", len(examples), len(examples), f"{source}, from the cache", "rows")
        return _to_tokenized_corpus(found, from_cache=True)
    writer, refused = token_cache.create_cache_writer()
    prover = MaskVerifier(template, tokenizer)
    done = 0
    for batch, rows in tokenize_batches(examples, template, tokenizer):
        prover.verify_rows(batch, rows)
        writer.add_rows(*to_token_file_rows(batch, rows, max_length, done))
        done += len(batch)
        progress("tokenise", done, len(examples), source, "rows")
    facts = {"proven": prover.rows_verified}
    found = writer.to_token_file(source, facts)
    if entry is not None:
        refused = refused or token_cache.save_to_cache(writer, entry, facts)
        if refused is not None:
            warnings.append(
                f"the tokens of {source!r} are not kept for the next run: {token_cache.token_cache_folder()}: {refused}"
            )
    if writer.write_error is not None and writer.has_rows_in_memory:
        warnings.append(f"the tokens of {source!r} are held in memory, the disk takes no more: {writer.write_error}")
    return _to_tokenized_corpus(found, warnings=tuple(warnings))


def _cache_key(
    content_digest: str,
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    warnings: list[str],
) -> str | None:
    """The cache's key of a corpus; None, with a warning, when the template cannot be told from another one."""
    try:
        about = [content_digest, max_length, tokenization_fingerprint(template, tokenizer)]
    except NotFingerprintable as error:
        warnings.append(
            f"the tokens of {source!r} are not kept for the next run: the template {template_name(template)}: {error}"
        )
        return None
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _to_tokenized_corpus(
    token_file: TokenFile, *, from_cache: bool = False, warnings: tuple[str, ...] = ()
) -> TokenizedCorpus:
    return TokenizedCorpus(
        token_file.rows,
        token_file.example_indices,
        token_file.tokens_cut,
        int(token_file.metadata["proven"]),
        from_cache,
        warnings,
    )


def _to_encoded_example(example: Example, source: str, masked: MaskedTokens, max_length: int) -> EncodedExample:
    labels = [-100] * len(masked.ids)
    for begin, end in masked.trained_spans:
        labels[begin:end] = masked.ids[begin:end]
    cut = max(len(masked.ids) - max_length, 0)
    return EncodedExample(
        TokenizedExample(example.id, source, tuple(masked.ids[:max_length]), tuple(labels[:max_length])), cut
    )


BATCH_ROWS, BATCH_CHARACTERS = 512, 500_000
"""Where a batch of a corpus ends: so many rows, or the row that reaches so many characters. Its tokens take about a
hundred bytes each until they are written."""

TOKENIZER_THREADS, MAX_PENDING_BATCHES = 2, 3
"""Batches that are tokenised at once (one waits for Python while the tokenizer works on the other), and begun early."""


def tokenize_batches(
    examples: Iterable[Example], template: Template, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[Example], list[MaskedTokens]]]:
    """The examples, batch by batch, with their whole rows; those before a bad one come before its error."""
    own = special_token_guard(tokenizer)
    own.reset_backend()
    _ = own.byte_widths  # found here, before the threads ask for it
    waiting: deque[tuple[list[Example], list[Rendering], Future[list[Encoding]]]] = deque()
    failure: HarnessError | None = None

    def first() -> tuple[list[Example], list[MaskedTokens]]:
        batch, renderings, encodings = waiting.popleft()
        return batch, mask_encodings(batch, renderings, encodings.result(), template, tokenizer)

    with ThreadPoolExecutor(TOKENIZER_THREADS, "tokenise") as pool:
        for batch in batch_examples(examples):
            renderings: list[Rendering] = []
            try:
                for example in batch:
                    renderings.append(render_training_text(example, template, tokenizer))
            except HarnessError as error:
                failure = error
            waiting.append(
                (batch[: len(renderings)], renderings, pool.submit(encode_renderings, renderings, tokenizer))
            )
            if failure is not None:
                break
            if len(waiting) > MAX_PENDING_BATCHES:
                yield first()
        while waiting:
            yield first()
    if failure is not None:
        raise failure


def batch_examples(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples, as many at a time as `ROWS` and `CHARACTERS` say."""
    batch: list[Example] = []
    size = 0
    for example in examples:
        batch.append(example)
        for message in example.messages:
            size += len(message.content) + len(message.input or "")
        if len(batch) == BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def to_token_file_rows(
    examples: Sequence[Example], rows: Sequence[MaskedTokens], max_length: int, first_index: int
) -> tuple[NDArray[np.int32], dict[str, list[int]]]:
    """What `Writer.add` takes, of the rows that have a trained token left. first: index of the first example."""
    facts: dict[str, list[int]] = {name: [] for name in ("ids", "kept", "lengths", "loss_tokens", "cut")}
    parts: list[list[int]] = []
    runs: list[TokenSpan] = []
    place = 0
    for index, (example, row) in enumerate(zip(examples, rows, strict=True), first_index):
        whole = len(row.ids)
        length = min(whole, max_length)
        # The first token of a row is predicted from nothing, so it never counts.
        loss = sum(max(min(end, length) - max(begin, 1), 0) for begin, end in row.trained_spans)
        if not loss:
            continue
        facts["ids"].append(int(example.id, 16))
        facts["kept"].append(index)
        facts["lengths"].append(length)
        facts["loss_tokens"].append(loss)
        facts["cut"].append(whole - length)
        parts.append(row.ids if length == whole else row.ids[:length])
        runs += [(place + begin, place + min(end, length)) for begin, end in row.trained_spans if begin < length]
        place += length
    flat = np.fromiter(chain.from_iterable(parts), np.int32, place)
    folded = ~flat
    for begin, end in runs:
        folded[begin:end] = flat[begin:end]
    return folded, facts
