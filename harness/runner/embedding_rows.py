"""Find token ids in the prepared rows for which the model has no embedding row, before its weights are loaded."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from harness.data.prepare import PreparedData
from harness.data.tokenization.tokenize import TokenizedCorpus
from harness.errors import HarnessError
from harness.types import Example, Plan
from harness.utils.formatting import join_names


def missing_row_errors(
    plan: Plan, data: PreparedData, tokenizer: Any, embedding_rows: int | None
) -> Iterator[HarnessError]:
    """Yield an error for each source and suite with a token that has no embedding row, at its first such row.

    Rows are read only if the tokenizer is larger than the embeddings.

    Args:
        plan: The plan.
        data: The prepared data.
        tokenizer: The model's tokenizer.
        embedding_rows: Number of rows in the model's files; None if unknown.
    """
    if embedding_rows is None or max(tokenizer.get_vocab().values()) < embedding_rows:
        return
    for source in data.sources.values():
        if source.tokenized_by_length:
            yield from _errors(
                _corpus_tokens(source.at_longest_length, source.training_examples), tokenizer, embedding_rows
            )
    for suite in plan.suites:
        examples = data.suite_examples[suite.name]
        if suite.name in data.tokenized_suites:
            tokens = _corpus_tokens(data.tokenized_suites[suite.name], examples)
        else:
            tokens = _plain_tokens(examples, tokenizer)
        yield from _errors(tokens, tokenizer, embedding_rows)


def _corpus_tokens(corpus: TokenizedCorpus, examples: Sequence[Example]) -> Iterator[tuple[Any, Any]]:
    """Yield the tokens of each row, (T,), and a function that returns its location."""
    for row, index in enumerate(corpus.example_indices.tolist()):
        yield corpus.rows.tokens(row), lambda index=index: examples[index].location


def _plain_tokens(examples: Iterable[Example], tokenizer: Any) -> Iterator[tuple[Any, Any]]:
    for example in examples:
        texts = [*(message.content for message in example.messages), *example.choices]
        ids = [token for text in texts for token in tokenizer(text)["input_ids"]]
        yield np.array(ids, np.int64), lambda example=example: example.location


def _errors(rows: Iterator[tuple[Any, Any]], tokenizer: Any, embedding_rows: int) -> Iterator[HarnessError]:
    location, row_count, counts = None, 0, Counter[int]()
    for tokens, get_location in rows:
        missing = tokens[tokens >= embedding_rows]
        if len(missing):
            location = location or get_location()
            row_count += 1
            counts.update(missing.tolist())
    if location is None:
        return
    texts = [tokenizer.convert_ids_to_tokens(index) for index in sorted(counts)]
    named = join_names([f"{text!r} (id {index:,})" for index, text in zip(sorted(counts)[:3], texts, strict=False)])
    more = f" and {len(texts) - 3} more tokens" if len(texts) > 3 else ""
    what = f"{row_count:,} row(s) have the token {named}{more}, but the model has {embedding_rows:,} embedding rows"
    tokens_as_json = json.dumps(texts[:10], ensure_ascii=False)
    yield HarnessError(location, what, f'give them a row: "model": {{"add_tokens": {tokens_as_json}}}')
