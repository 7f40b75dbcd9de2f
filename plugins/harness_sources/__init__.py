"""The sources that come with harness: places that rows come from."""

from __future__ import annotations

from typing import Any

from harness import Component, hookimpl

__all__ = ["harness_sources"]


STORAGE_OPTION: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean", "null", "object"]},
    "default": {},
    "description": "Settings of an address's file system, as fsspec takes them, e.g. "
    '{"endpoint_url": "http://localhost:9000"} or {"anon": true}. Credentials come from the environment alone.',
}


def _file_options(description: str, **extra_options: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": {
            "type": ["string", "array"],
            "format": "path",
            "minLength": 1,
            "items": {"type": "string", "minLength": 1, "format": "path"},
            "minItems": 1,
            "description": f"{description}, or a list of them, read in this order. A path from the spec's folder, a "
            "pattern (data/*), pkg://package/file of an installed Python package, or an address such as s3://bucket/file.",
        },
        "storage": STORAGE_OPTION,
        **extra_options,
    }


@hookimpl
def harness_sources() -> dict[str, Component]:
    return {
        "jsonl": Component(
            summary="Reads rows from a file with one JSON object a line.",
            factory="harness_sources.json_sources:JsonlSource",
            options=_file_options("A JSONL file, as it is or compressed by gzip or zstd"),
            required=("path",),
        ),
        "json": Component(
            summary="Reads rows from a JSON file: an array of objects, or an object that holds one array of them.",
            factory="harness_sources.json_sources:JsonSource",
            options=_file_options("A JSON file, as it is or compressed by gzip or zstd"),
            required=("path",),
        ),
        "csv": Component(
            summary="Reads rows from a CSV file whose first line names the columns.",
            factory="harness_sources.csv_table:CsvSource",
            options=_file_options(
                "A CSV file, as it is or compressed by gzip or zstd",
                delimiter={
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1,
                    "default": ",",
                    "description": 'The character between two fields, e.g. ";" or "\\t".',
                },
            ),
            required=("path",),
        ),
        "parquet": Component(
            summary="Reads rows from a Parquet file, a batch at a time.",
            factory="harness_sources.arrow:ParquetSource",
            options=_file_options("A Parquet file"),
            required=("path",),
        ),
        "arrow": Component(
            summary="Reads rows from Arrow files, or from a folder that datasets' save_to_disk has written.",
            factory="harness_sources.arrow:ArrowSource",
            options=_file_options(
                "An Arrow file, or the folder of a saved dataset",
                split={
                    "type": ["string", "null"],
                    "default": None,
                    "description": "The split, of a folder that holds several. null: the folder holds one data set.",
                },
            ),
            required=("path",),
        ),
        "text": Component(
            summary="Reads plain text for continued pretraining: a document a line, or a file.",
            factory="harness_sources.text:TextSource",
            options=_file_options(
                "A text file in UTF-8, as it is or compressed by gzip or zstd",
                document={
                    "enum": ["line", "file"],
                    "default": "line",
                    "description": "What a document is: each line that is not blank, or each whole file.",
                },
            ),
            required=("path",),
        ),
        "hub": Component(
            summary="Reads rows from a dataset of the Hugging Face hub; none of its code is run.",
            factory="harness_sources.hub:HubSource",
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
                "streaming": {
                    "type": "boolean",
                    "default": False,
                    "description": "Fetch rows as they are read and keep no copy: with `head`, only as many as needed.",
                },
            },
            required=("name",),
        ),
        "lm_eval": Component(
            summary="Reads the documents of a task of an installed lm-evaluation-harness; for suites.",
            factory="harness_sources.lm_eval_task:LmEvalSource",
            options={
                "task": {"type": "string", "minLength": 1, "description": "The task's name there, e.g. arc_easy."},
                "shots": {
                    "type": "integer",
                    "minimum": 0,
                    "default": 0,
                    "description": "Solved examples before each question.",
                },
                "include": {
                    "type": ["string", "null"],
                    "format": "path",
                    "default": None,
                    "description": "A folder with tasks of your own, searched alone. null: the package's tasks.",
                },
            },
            required=("task",),
        ),
    }
