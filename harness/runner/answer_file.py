"""Answer every prompt of a file, resumably: a JSON Lines file with one answer for each row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from harness.data.reading.messages import parse_messages
from harness.errors import HarnessError, InvalidRow
from harness.evaluation.generation import Answer
from harness.interfaces.source import Source
from harness.registry import Registry
from harness.runner.prepare import create_progress
from harness.runner.respond import AnswerSettings, answer_batch
from harness.runner.trained_model import TrainedModel, load_trained_model
from harness.spec.component_options import fill_component_options
from harness.types import InvalidRecord, Message, Record
from harness.utils import file_digests
from harness.utils.formatting import join_names
from harness.utils.json_depth import load_json
from harness.utils.json_files import write_json
from harness.utils.write_errors import report_write_errors

SOURCES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"}
"""Suffix of a file of prompts -> the source that reads it."""

PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "text", "问题", "提问", "指令", "提示")
"""Columns that hold a prompt, the first that a row has."""

MESSAGE_COLUMNS = ("messages", "conversations")

CHUNK_BATCHES = 8
"""Batches whose answers are written together, in the order of the rows."""


@dataclass(frozen=True)
class PromptFile:
    """A file with a prompt in each row.

    Attributes:
        path: JSON Lines, JSON or CSV.
        column: The column that holds the prompt or the messages; None: the first of `MESSAGE_COLUMNS` and
            `PROMPT_COLUMNS` that a row has.
    """

    path: Path
    column: str | None = None


@dataclass(frozen=True)
class AnsweredFile:
    """What was written.

    Attributes:
        file: The answers.
        rows: Number of answers.
        resumed: How many of them were there before.
        cut: How many answers ended at the maximum number of tokens.
    """

    file: Path
    rows: int
    resumed: int
    cut: int


def answer_file(
    registry: Registry,
    run: Path,
    prompts: PromptFile,
    output: Path,
    settings: AnswerSettings,
    *,
    batch_size: int = 8,
    base: bool = False,
) -> AnsweredFile:
    """Answer every row of a file with the model of a run. Answers that are stored already are kept.

    Args:
        registry: The components and listeners.
        run: The folder of the run.
        prompts: The file with the prompts.
        output: The file to write or to complete. Its settings are stored beside it.
        settings: How the answers are generated.
        batch_size: Maximum number of answers at once.
        base: Whether the model that the run started from answers.

    Raises:
        HarnessError: A row has no prompt, or the output has answers of other settings.
        RunError: The output cannot be written.
    """
    conversations = [_parse_prompt(record, prompts.column) for record in _read_records(registry, prompts.path)]
    identity = {
        "run": run.name,
        "model": "base" if base else "tuned",
        "prompts": file_digests.sha256_of_file(prompts.path),
        "column": prompts.column,
        **asdict(settings),
    }
    remedy = "the same command writes the rest"
    with report_write_errors(output, "the answers", remedy):
        done, cut = _open_output(output, identity, len(conversations))
        resumed = done
        if done < len(conversations):
            progress = create_progress(registry)
            trained = load_trained_model(registry, run, progress=progress)
            with (
                trained.base_model(progress)() if base else nullcontext(trained.model) as model,
                output.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as stream,
            ):
                for chunk in _chunks(range(done, len(conversations)), CHUNK_BATCHES * batch_size):
                    progress("generate", done, len(conversations), "", "rows")
                    answers = _answer_chunk(trained, model, conversations, chunk, settings, batch_size)
                    for index in chunk:
                        cut += answers[index].finish == "length"
                        _write_answer(stream, conversations[index][0], answers[index])
                    stream.flush()
                    done = chunk[-1] + 1
                progress("generate", done, len(conversations), "", "rows")
    return AnsweredFile(output, len(conversations), resumed, cut)


def _answer_chunk(
    trained: TrainedModel,
    model: Any,
    conversations: Sequence[tuple[Record, list[Message]]],
    chunk: Sequence[int],
    settings: AnswerSettings,
    batch_size: int,
) -> dict[int, Answer]:
    answers: dict[int, Answer] = {}
    wanted = {index: conversations[index][1] for index in chunk}
    answer_batch(trained, model, wanted, settings, batch_size, answers.__setitem__)
    return answers


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for begin in range(0, len(indices), size):
        yield indices[begin : begin + size]


def _read_records(registry: Registry, file: Path) -> Iterator[Record]:
    """Yield the rows of a file.

    Raises:
        HarnessError: The file has another format, or a row cannot be read.
    """
    name = SOURCES.get(file.suffix.lower())
    if name is None:
        raise HarnessError(
            str(file), "is neither JSON Lines nor CSV", f"name a file that ends in {join_names(SOURCES)}"
        )
    options: dict[str, Any] = {"path": str(file)}
    if file.suffix.lower() == ".tsv":
        options["delimiter"] = "\t"
    source: Source = registry.create("sources", name, fill_component_options(registry, "sources", name, options))
    for record in source.records():
        if isinstance(record, InvalidRecord):
            raise HarnessError(record.location, record.what, record.hint)
        yield record


def _parse_prompt(record: Record, column: str | None) -> tuple[Record, list[Message]]:
    """Return a row with the conversation that it asks to continue.

    A response at the end of a conversation is removed: it is a reference.

    Raises:
        HarnessError: The row has no prompt.
    """
    row = record.data
    column = column or next((name for name in (*MESSAGE_COLUMNS, *PROMPT_COLUMNS) if row.get(name)), None)
    if column is None or not row.get(column):
        columns = join_names([str(name) for name in row][:20])
        what = f"has no {column!r}" if column else "has no prompt"
        raise HarnessError(record.location, what, f"name its column: --column NAME; the row has {columns}")
    value = row[column]
    if not isinstance(value, str) or column in MESSAGE_COLUMNS:
        try:
            messages = parse_messages(value, column)
        except InvalidRow as error:
            raise HarnessError(record.location, error.what, error.hint) from error
        if messages and messages[-1].role == "assistant":
            messages.pop()
        if not messages:
            raise HarnessError(record.location, "has a conversation without a prompt", "begin it with the user's turn")
        return record, messages
    system, text = row.get("system"), row.get("input") if column == "instruction" else None
    messages = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    return record, [*messages, Message("user", value, text if isinstance(text, str) and text.strip() else None)]


def _write_answer(stream: IO[str], record: Record, answer: Answer) -> None:
    row: dict[str, Any] = dict(record.data)
    if "answer" in row:
        row["reference"] = row.pop("answer")
    row |= {"answer": answer.text, "finish": answer.finish, "answer_tokens": answer.token_count}
    stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _open_output(output: Path, identity: Mapping[str, Any], rows: int) -> tuple[int, int]:
    """Create the output, or remove the incomplete line at its end.

    Returns:
        How many answers it has, and how many of them ended at the maximum number of tokens.

    Raises:
        HarnessError: It has answers of other settings.
    """
    settings_file = output.with_name(output.name + ".settings.json")
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(settings_file, identity, indent=2)
        output.touch()
        return 0, 0
    hint = "name another file: --output FILE, or delete it"
    try:
        stored = load_json(settings_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise HarnessError(str(output), "the file exists, and is not one of this command", hint) from None
    changed = sorted(key for key in {*stored, *identity} if stored.get(key) != identity.get(key))
    if changed:
        raise HarnessError(str(output), f"the file has answers with other settings ({join_names(changed)})", hint)
    done, cut, valid_bytes = 0, 0, 0
    with output.open("r+b") as stream:
        for line in stream:
            try:
                answer = load_json(line) if line.endswith(b"\n") else None
            except ValueError:
                answer = None
            if not isinstance(answer, dict) or done == rows:
                break
            done, cut, valid_bytes = done + 1, cut + (answer.get("finish") == "length"), valid_bytes + len(line)
        stream.truncate(valid_bytes)
    return done, cut
