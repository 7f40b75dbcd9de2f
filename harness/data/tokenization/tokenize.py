"""Tokenize conversations: one row, a list of rows in memory, or a complete corpus on disk with verified masks.

`tokenize_example` is the path of one row. `tokenize_corpus` takes the same steps batch by batch.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from harness.data.tokenization import token_cache
from harness.data.tokenization.fingerprints import NotFingerprintable, tokenization_fingerprint
from harness.data.tokenization.label_mask import MaskedTokens, encode_renderings, mask_encodings
from harness.data.tokenization.mask_verification import FullMaskCheck, MaskVerifier
from harness.data.tokenization.rendering import Interval, Rendering, render_training_text, template_name
from harness.data.tokenization.special_tokens import special_token_guard
from harness.data.tokenization.token_file import COLUMN_DTYPES, TokenFile
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import IGNORE_INDEX, Example, Progress, TokenizedExample, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZE_BATCH_ROWS = 512
"""Rows that `tokenize_examples` tokenizes in one call."""


def tokenize_example(
    example: Example,
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    verify: bool = True,
) -> TokenizedExample:
    """Turn one conversation or plain text into a row of token ids and labels, truncated on the right.

    Special tokens in messages are plain text. The tokenizer's begin-of-sequence token comes first if the tokenizer adds
    one itself, and is never duplicated. A plain text is trained completely, except its first token and including its
    end-of-sequence token.

    Args:
        example: The conversation or plain text.
        source: The name of its source.
        template: The template that renders it.
        tokenizer: A fast tokenizer.
        max_length: Maximum number of tokens of the row.
        verify: Whether to verify the mask by decoding the trained tokens, see `mask_verification`.

    Raises:
        HarnessError: At the row's location, when the conversation does not end with a response, when a response is
            empty or none is marked for training, when the template refuses the row or renders nothing trainable, when
            the tokenizer cannot distinguish special tokens in a message from those of the template, or when the mask
            is wrong.
    """
    rendering = render_training_text(example, template, tokenizer)  # one text with its trained spans
    encodings = encode_renderings([rendering], tokenizer)
    (masked,) = mask_encodings([example], [rendering], encodings, template, tokenizer)
    if verify:
        FullMaskCheck(template, tokenizer).check_row(example, masked)
    return _label_and_truncate(example, source, masked, max_length)


def tokenize_examples(
    examples: Sequence[Example],
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Progress = no_progress,
) -> list[TokenizedExample]:
    """Turn rows into `TokenizedExample`s as `tokenize_example` does, in order and in memory, without verification.

    Args:
        examples: The conversations and plain texts.
        source: The name of their source.
        template: The template that renders them.
        tokenizer: A fast tokenizer.
        max_length: Maximum number of tokens of a row.
        progress: Called after each batch, with phase `tokenize` and in rows.

    Raises:
        HarnessError: As `tokenize_example` does.
    """
    tokenized: list[TokenizedExample] = []
    for begin in range(0, len(examples), TOKENIZE_BATCH_ROWS):
        batch = examples[begin : begin + TOKENIZE_BATCH_ROWS]
        renderings = [render_training_text(example, template, tokenizer) for example in batch]
        rows = mask_encodings(batch, renderings, encode_renderings(renderings, tokenizer), template, tokenizer)
        tokenized += [
            _label_and_truncate(example, source, row, max_length) for example, row in zip(batch, rows, strict=True)
        ]
        progress("tokenize", len(tokenized), len(examples), source, "rows")
    return tokenized


def _label_and_truncate(example: Example, source: str, masked: MaskedTokens, max_length: int) -> TokenizedExample:
    labels = [IGNORE_INDEX] * len(masked.ids)
    for begin, end in masked.trained_spans:
        labels[begin:end] = masked.ids[begin:end]
    return TokenizedExample(
        id=example.id,
        source=source,
        input_ids=tuple(masked.ids[:max_length]),
        labels=tuple(labels[:max_length]),
        tokens_cut=max(len(masked.ids) - max_length, 0),
    )


@dataclass(frozen=True)
class TokenizedCorpus:
    """A tokenized corpus of N rows that have a trained token within `max_length`.

    Attributes:
        rows: These rows, in the corpus's order.
        example_indices: (N,) int64, the index of each row among the examples.
        tokens_cut: (N,) int32, tokens that truncation removed from the right of each row.
        rows_verified: Examples whose masks were verified: all of them, dropped ones included.
        from_cache: Whether the rows were loaded from the cache.
        warnings: Warnings for the user, a line each.
    """

    rows: TokenizedRows
    example_indices: NDArray[np.int64]
    tokens_cut: NDArray[np.int32]
    rows_verified: int
    from_cache: bool = False
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_token_file(
        cls, token_file: TokenFile, *, from_cache: bool = False, warnings: tuple[str, ...] = ()
    ) -> TokenizedCorpus:
        """Return the corpus that a token file holds."""
        rows_verified = int(token_file.metadata["proven"])
        return cls(
            token_file.rows, token_file.example_indices, token_file.tokens_cut, rows_verified, from_cache, warnings
        )


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
    """Tokenize a corpus and verify every mask. The tokens are stored on disk, not in memory.

    Args:
        examples: The rows, iterated once and in order. Their ids are 16 hex digits.
        source: The name of their source.
        template: The template that renders them.
        tokenizer: A fast tokenizer.
        max_length: Maximum number of tokens of a row.
        content_digest: A digest of everything in the examples that can change a token. With it, the result is stored in
            the cache, and loaded from there if nothing has changed. None: do not use the cache.
        progress: Called after each batch, with phase `tokenize` and in rows.

    Returns:
        The corpus. Its `warnings` report a cache that cannot be used, and a full disk, after which rows are held in
        memory.

    Raises:
        HarnessError: As `tokenize_example` does, for the first row that is wrong.
    """
    warnings: list[str] = []
    key = (
        None
        if content_digest is None
        else _cache_key([content_digest, max_length], source, template, tokenizer, warnings)
    )
    if key is not None and (cached := token_cache.load_cached_tokens(key, source)) is not None:
        progress("tokenize", len(examples), len(examples), f"{source}, from the cache", "rows")
        return TokenizedCorpus.from_token_file(cached, from_cache=True)
    writer, cache_error = token_cache.create_cache_writer()
    verifier = MaskVerifier(template, tokenizer)
    num_done = 0
    for batch, rows in tokenize_batches(examples, template, tokenizer):
        verifier.verify_rows(batch, rows)
        writer.add_rows(*to_token_file_rows(batch, rows, max_length, num_done))
        num_done += len(batch)
        progress("tokenize", num_done, len(examples), source, "rows")
    metadata = {"proven": verifier.rows_verified}
    token_file = writer.to_token_file(source, metadata)
    if key is not None:
        cache_error = cache_error or token_cache.save_to_cache(writer, key, metadata)
        if cache_error is not None:
            warnings.append(_not_cached_warning(source, f"{token_cache.token_cache_folder()}: {cache_error}"))
    if writer.write_error is not None and writer.has_rows_in_memory:
        warnings.append(f"the tokens of {source!r} are held in memory, the disk is not writable: {writer.write_error}")
    return TokenizedCorpus.from_token_file(token_file, warnings=tuple(warnings))


def _cache_key(
    parts: list[object],
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    warnings: list[str],
) -> str | None:
    """Return the cache key of a corpus; None, with a warning, when the template cannot be fingerprinted."""
    try:
        parts = [*parts, tokenization_fingerprint(template, tokenizer)]
    except NotFingerprintable as error:
        warnings.append(_not_cached_warning(source, f"the template {template_name(template)}: {error}"))
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _not_cached_warning(source: str, reason: str) -> str:
    return f"the tokens of {source!r} are not cached for the next run: {reason}"


BATCH_ROWS, BATCH_CHARACTERS = 512, 500_000
"""A batch of a corpus ends after this many rows, or with the row that reaches this many characters. Its tokens take
about a hundred bytes each until they are written."""

TOKENIZER_THREADS, MAX_PENDING_BATCHES = 2, 3
"""Batches tokenized at once (one waits for Python while the tokenizer works on the other), and batches queued."""


def tokenize_batches(
    examples: Iterable[Example], template: Template, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[Example], list[MaskedTokens]]]:
    """Yield the examples batch by batch with their untruncated rows, tokenized in worker threads.

    Raises:
        HarnessError: As `tokenize_example` does, after all rows before the wrong one have been yielded.
    """
    guard = special_token_guard(tokenizer)
    guard.reset_backend()
    _ = guard.byte_widths  # cached here, before threads read it
    pending: deque[tuple[list[Example], list[Rendering], Future[list[Encoding]]]] = deque()
    failure: HarnessError | None = None

    def mask_oldest() -> tuple[list[Example], list[MaskedTokens]]:
        batch, renderings, encodings = pending.popleft()
        return batch, mask_encodings(batch, renderings, encodings.result(), template, tokenizer)

    with ThreadPoolExecutor(TOKENIZER_THREADS, "tokenize") as pool:
        for batch in batch_examples(examples):
            renderings: list[Rendering] = []
            try:
                for example in batch:
                    renderings.append(render_training_text(example, template, tokenizer))
            except HarnessError as error:
                failure = error
            encodings = pool.submit(encode_renderings, renderings, tokenizer)
            pending.append((batch[: len(renderings)], renderings, encodings))
            if failure is not None:
                break
            if len(pending) > MAX_PENDING_BATCHES:
                yield mask_oldest()
        while pending:
            yield mask_oldest()
    if failure is not None:
        raise failure


def batch_examples(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield the examples in batches of `BATCH_ROWS` rows or `BATCH_CHARACTERS` characters."""
    batch: list[Example] = []
    num_characters = 0
    for example in examples:
        batch.append(example)
        for message in example.messages:
            num_characters += len(message.content) + len(message.input or "")
        if len(batch) == BATCH_ROWS or num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def to_token_file_rows(
    examples: Sequence[Example], rows: Sequence[MaskedTokens], max_length: int, first_index: int
) -> tuple[NDArray[np.int32], dict[str, list[int]]]:
    """Truncate rows, drop those without a trained token, and return the arguments of `TokenFileWriter.add_rows`.

    Args:
        examples: The examples of the batch.
        rows: Their untruncated tokens.
        max_length: Maximum number of tokens of a row.
        first_index: The index of the first example in the corpus.
    """
    columns: dict[str, list[int]] = {name: [] for name in COLUMN_DTYPES}
    pieces: list[list[int]] = []
    trained_spans: list[Interval] = []
    offset = 0
    for index, (example, row) in enumerate(zip(examples, rows, strict=True), first_index):
        full_length = len(row.ids)
        length = min(full_length, max_length)
        # The first token of a row is never predicted, so it is not a loss token.
        loss_tokens = sum(max(min(end, length) - max(begin, 1), 0) for begin, end in row.trained_spans)
        if not loss_tokens:
            continue
        columns["ids"].append(int(example.id, 16))
        columns["example_indices"].append(index)
        columns["lengths"].append(length)
        columns["loss_tokens"].append(loss_tokens)
        columns["tokens_cut"].append(full_length - length)
        pieces.append(row.ids if length == full_length else row.ids[:length])
        trained_spans += [
            (offset + begin, offset + min(end, length)) for begin, end in row.trained_spans if begin < length
        ]
        offset += length
    tokens = np.fromiter(chain.from_iterable(pieces), np.int32, offset)
    stored = ~tokens
    for begin, end in trained_spans:
        stored[begin:end] = tokens[begin:end]
    return stored, columns
