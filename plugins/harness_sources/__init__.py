"""The sources that come with harness: places that rows come from."""

from __future__ import annotations

from typing import Any

from harness import Component, hookimpl

__all__ = ["harness_sources"]


def _path(kind: str) -> dict[str, Any]:
    return {
        "type": ["string", "array"],
        "format": "path",
        "minLength": 1,
        "items": {"type": "string", "minLength": 1, "format": "path"},
        "minItems": 1,
        "description": f"{kind}, or a list of them, read in this order. Relative to the spec's folder.",
    }


@hookimpl
def harness_sources() -> dict[str, Component]:
    return {
        "jsonl": Component(
            summary="Reads rows from a file with one JSON object a line.",
            load="harness_sources.jsonl:JsonLines",
            options={"path": _path("A JSONL file")},
            required=("path",),
        ),
        "json": Component(
            summary="Reads rows from a JSON file: an array of objects, or an object that holds one array of them.",
            load="harness_sources.json_array:JsonArray",
            options={"path": _path("A JSON file")},
            required=("path",),
        ),
        "csv": Component(
            summary="Reads rows from a CSV file whose first line names the columns.",
            load="harness_sources.csv_table:CsvTable",
            options={
                "path": _path("A CSV file"),
                "delimiter": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1,
                    "default": ",",
                    "description": 'The character between two fields, e.g. ";" or "\\t".',
                },
            },
            required=("path",),
        ),
        "parquet": Component(
            summary="Reads rows from a Parquet file, a batch at a time.",
            load="harness_sources.parquet:Parquet",
            options={"path": _path("A Parquet file")},
            required=("path",),
        ),
        "hub": Component(
            summary="Reads rows from a dataset of the Hugging Face hub; none of its code is run.",
            load="harness_sources.hub:Hub",
            options={
                "name": {
                    "type": "string",
                    "pattern": r"^[\w.-]+(/[\w.-]+)?$",
                    "description": "The dataset's id, e.g. tatsu-lab/alpaca.",
                },
                "config": {
                    "type": ["string", "null"],
                    "default": None,
                    "description": "The dataset's configuration. null: its default one.",
                },
                "split": {
                    "type": "string",
                    "minLength": 1,
                    "default": "train",
                    "description": "The split, e.g. train, or a slice of one: train[:1000].",
                },
                "revision": {
                    "type": ["string", "null"],
                    "default": None,
                    "description": "Branch, tag or commit; pin a commit so that a run can be done again. null: main.",
                },
            },
            required=("name",),
        ),
    }
