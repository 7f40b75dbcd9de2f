"""Rows that a model has written: their record on disk, their tokens with verified masks, and the stage with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.data.mixing.row_choice import choose_rows
from harness.data.mixing.stage_layout import build_stage_dataset
from harness.data.prepare import PreparationOptions, PreparedData
from harness.data.reading.conversation import build_example
from harness.data.reading.corpus import CorpusView, build_corpus
from harness.data.reading.splits import check_disjoint, limit_rows
from harness.data.tokenization.tokenize import TokenizedCorpus, tokenize_corpus
from harness.errors import HarnessError, InvalidRow, RunError
from harness.interfaces.template import Template
from harness.types import Example, InvalidRecord, Message, Progress, Stage, StageDataset, StageSource, ToolCall
from harness.utils.atomic_write import atomic_write
from harness.utils.json_depth import load_json
from harness.utils.write_errors import report_write_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WrittenRow = Example | InvalidRecord


def prompts_of_source(data: PreparedData, source: str, limit: int | None, seed: int) -> CorpusView:
    """Return the training rows of a source that the model is asked to answer, at most `limit`, chosen by the seed."""
    rows = data.training_examples[source]
    return rows.select(limit_rows(rows.content_hashes, limit, seed, "write", source))


def validate_written_rows(rows: Iterable[WrittenRow], writer: str) -> list[WrittenRow]:
    """Return the rows with the ids of their content.

    Args:
        rows: What `Mitigation.generate_rows` yields.
        writer: The mitigation, for errors.

    Raises:
        RunError: A row is not a valid conversation.
    """
    valid: list[WrittenRow] = []
    for row in rows:
        if isinstance(row, InvalidRecord):
            valid.append(row)
            continue
        try:
            built = build_example(row.messages, row.location, row.tools, row.choices, assistant_may_begin=True)
        except InvalidRow as error:
            what = f"the row written for {row.location} {error.what}"
            raise RunError(f"mitigations.{writer}, generate_rows", what, error.hint) from error
        valid.append(replace(built, groups=row.groups, data=row.data))
    return valid


def reject_evaluated_prompts(rows: Sequence[WrittenRow], data: PreparedData) -> list[WrittenRow]:
    """Return the rows, with the reason instead of those that have a prompt of a suite.

    Args:
        rows: The written rows, with the ids of their content.
        data: The prepared data.
    """
    examples = [row for row in rows if isinstance(row, Example)]
    view = build_corpus("written", examples).select(np.arange(len(examples)))
    prompts, positions = view.trained_prompt_hashes()
    suites = [suite.prompt_hashes for suite in data.suite_examples.values() if isinstance(suite, CorpusView)]
    evaluated = np.concatenate([np.empty(0, np.uint64), *suites])
    shared = {examples[position].id for position in positions[np.isin(prompts, evaluated)].tolist()}
    return [
        InvalidRecord(row.location, "the prompt of a suite", raw=row.messages[-1].content)
        if isinstance(row, Example) and row.id in shared
        else row
        for row in rows
    ]


def tokenize_written_rows(
    source: str,
    rows: Sequence[WrittenRow],
    data: PreparedData,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Progress,
) -> tuple[CorpusView, TokenizedCorpus]:
    """Tokenize the written rows, and verify every mask and that no suite has one of their prompts.

    Raises:
        HarnessError: A mask is wrong, or a row has the prompt of a suite.
        RunError: No row is left.
    """
    examples = list({row.id: row for row in rows if isinstance(row, Example)}.values())  # equal rows once
    corpus = build_corpus(source, examples)
    view = corpus.select(np.arange(len(corpus)))
    suites = {name: suite for name, suite in data.suite_examples.items() if isinstance(suite, CorpusView)}
    check_disjoint({source: view}, suites)
    tokenized = tokenize_corpus(view, source, template, tokenizer, max_length, progress=progress) if examples else None
    if tokenized is None or not len(tokenized.rows):
        rejected = count_rejected(rows)
        reasons = ", ".join(f"{count:,} {what}" for what, count in rejected.items()) or "none was written"
        what = f"the model wrote no row of {source!r} that can be trained on: {reasons}"
        raise RunError(
            f"sources.{source}", what, "raise the maximum number of tokens, or train on the data's responses"
        )
    return view, tokenized


def rebuild_stage(
    stage: Stage,
    written: Mapping[str, tuple[CorpusView, TokenizedCorpus]],
    data: PreparedData,
    options: PreparationOptions,
    seed: int,
) -> StageDataset:
    """Build the dataset of a stage with written rows instead of those of the data, with the same shares.

    Args:
        stage: The stage.
        written: Source -> its written rows.
        data: The prepared data.
        options: How the data was prepared.
        seed: The seed of the plan.

    Raises:
        RunError: A share cannot be met with the written rows.
    """
    tokenized = {
        part.source: written[part.source][1]
        if part.source in written
        else data.sources[part.source].tokenized_by_length[stage.train["max_length"]]
        for part in stage.sources
    }
    examples = {**data.training_examples, **{source: view for source, (view, _) in written.items()}}
    try:
        pools, order_keys = choose_rows(options.mode, stage, tokenized, examples)
        return build_stage_dataset(stage, pools, seed, options.processes, options.longest_unpadded_row, order_keys)
    except RunError:
        raise
    except HarnessError as error:
        counts = ", ".join(f"{len(rows.rows):,} written rows of {source!r}" for source, (_, rows) in written.items())
        raise RunError(error.where, f"{error.what}, with {counts}", error.hint) from error


def count_rejected(rows: Iterable[WrittenRow]) -> dict[str, int]:
    """Return why rows are not used -> how many."""
    counts: dict[str, int] = {}
    for row in rows:
        if isinstance(row, InvalidRecord):
            counts[row.what] = counts.get(row.what, 0) + 1
    return counts


def sources_with_written_rows(stage: Stage) -> list[StageSource]:
    """Return the sources of a stage whose rows a mitigation writes."""
    return [part for part in stage.sources if part.written_by is not None]


# -- the record -------------------------------------------------------------------------------------------------------


def rows_to_json(rows: Iterable[WrittenRow]) -> list[dict[str, Any]]:
    """Return the rows as JSON objects: `messages` and other fields of an example, or `rejected` with the reason."""
    return [
        {"location": row.location, "rejected": row.what, "hint": row.hint, "raw": row.raw}
        if isinstance(row, InvalidRecord)
        else _example_to_json(row)
        for row in rows
    ]


def rows_from_json(lines: Iterable[Mapping[str, Any]]) -> list[WrittenRow]:
    """Return the rows of which `rows_to_json` made objects. Raises KeyError or TypeError for others."""
    return [
        InvalidRecord(line["location"], line["rejected"], line["hint"], line["raw"])
        if "rejected" in line
        else _example_from_json(line)
        for line in lines
    ]


def save_written_rows(file: Path, rows: Iterable[WrittenRow]) -> None:
    """Write the rows as JSON Lines, atomically; a source `jsonl` can read them. Rejected ones have their own file."""
    lines = rows_to_json(rows)
    rejected = [line for line in lines if "rejected" in line]
    used = [line for line in lines if "rejected" not in line]
    with report_write_errors(file, "the rows that the model wrote"):
        file.parent.mkdir(parents=True, exist_ok=True)
        for path, entries in ((_rejected_file(file), rejected), (file, used)):
            with atomic_write(path) as draft:
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in entries)
                draft.write_text(text, encoding="utf-8")


def load_written_rows(file: Path) -> list[WrittenRow] | None:
    """Return the rows of a record; None if there is none.

    Raises:
        RunError: The record is damaged.
    """
    if not file.is_file():
        return None
    try:
        texts = [path.read_text(encoding="utf-8") for path in (file, _rejected_file(file))]
        return rows_from_json(load_json(line) for text in texts for line in text.split("\n") if line)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"the record of written rows is damaged: {type(error).__name__}: {error}"
        raise RunError(str(file), what, "delete this file, and the rows are written again") from error


def _rejected_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}.rejected.jsonl")


def _example_to_json(example: Example) -> dict[str, Any]:
    messages = [
        {
            member.name: value
            for member in fields(message)
            if (value := getattr(message, member.name)) != member.default or member.name in ("role", "content")
        }
        for message in example.messages
    ]
    for message in messages:
        if "tool_calls" in message:
            message["tool_calls"] = [asdict(call) for call in message["tool_calls"]]
    optional = {"tools": example.tools, "choices": example.choices, "groups": example.groups, "data": example.data}
    line = {"id": example.id, "location": example.location, "messages": messages}
    return {**line, **{name: value for name, value in optional.items() if value}}


def _example_from_json(line: Mapping[str, Any]) -> Example:
    messages = tuple(
        Message(**{**message, "tool_calls": tuple(ToolCall(**call) for call in message.get("tool_calls", ()))})
        for message in line["messages"]
    )
    groups = tuple((column, group) for column, group in line.get("groups", ()))
    choices, tools = tuple(line.get("choices", ())), tuple(line.get("tools", ()))
    return Example(line["id"], messages, line["location"], tools, choices, groups, line.get("data", {}))
