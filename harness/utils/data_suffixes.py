"""Suffixes of files of rows, and the sources that read them."""

from __future__ import annotations

from collections.abc import Mapping

SOURCE_OF_SUFFIX: Mapping[str, str] = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".json": "json",
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""Suffix of a file, without `.gz` or `.zst` -> the source that reads it."""
