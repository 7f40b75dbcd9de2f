"""The items of a suite: how they read, and the file that they are written to as they finish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from harness.contracts import Example, Item, Message


class Write(Protocol):
    """Keeps one finished item. extra: facts about it that no score needs."""

    def __call__(self, item: Item, extra: Mapping[str, Any]) -> None: ...


def prompt_text(example: Example) -> str:
    """What was asked, to be read by a person: the message alone, or the turns with their roles; no template."""
    *before, _ = example.messages
    if len(before) == 1 and before[0].role == "user":
        return _text(before[0])
    return "\n".join(f"{message.role}: {_text(message)}" for message in before)


def _text(message: Message) -> str:
    return f"{message.content}\n\n{message.input}" if message.input else message.content


@contextmanager
def item_file(folder: Path | None, suite: str, stage: int) -> Iterator[Write]:
    """Writes items to `<suite>-stage<k>.jsonl` in the folder, one JSON object a line, each flushed as it comes.

    What an item has: id, suite, stage, prompt, reference, answer, finish, nll, tokens, and what `extra` adds.
    None of it is written where there is no folder. A file left there by an earlier evaluation is replaced.
    """
    if folder is None:
        yield lambda item, extra: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{suite}-stage{stage}.jsonl").open("w", encoding="utf-8") as file:

        def write(item: Item, extra: Mapping[str, Any]) -> None:
            record = {"id": item.id, "suite": suite, "stage": stage, "prompt": item.prompt}
            record |= {"reference": item.reference, "answer": item.answer, "finish": item.finish}
            record |= {"nll": item.nll, "tokens": item.tokens, **extra}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()

        yield write
