"""Corpora whose rows are held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from harness import Example
from harness.data.reading import corpus
from harness.data.reading.conversation_store import serialize_example


def corpus_in_memory(examples: Iterable[Example], name: str) -> corpus.Corpus:
    """Return a corpus whose examples are held in memory."""
    rows = tuple(examples)
    digest = hashlib.sha256(b"".join(map(serialize_example, rows))).hexdigest()
    content_hashes = np.array([int(row.id, 16) for row in rows], np.uint64)
    hashes = corpus._PromptHashes()
    for row in rows:
        hashes.add(row)
    return corpus.Corpus(name, rows, content_hashes, *hashes.to_arrays(), digest, "auto", len(rows))
