"""A chat in the terminal: one model, or the base model and the tuned model side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from harness.errors import HarnessError
from harness.evaluation.generation import Answer
from harness.runner.respond import AnswerSettings, stream_answer
from harness.runner.trained_model import TrainedModel
from harness.types import Message
from harness.utils.formatting import printable

HELP = """/reset           start a new conversation
/system [TEXT]   set the system message, or remove it, and start a new conversation
/quit            leave; so does Ctrl-D. Ctrl-C stops an answer"""

COLORS = {"base": "yellow", "tuned": "green"}


@dataclass
class Speaker:
    """One of the models, with its own conversation.

    Attributes:
        name: `base` or `tuned`.
        open_model: Returns a context whose value is the model.
        messages: The conversation so far, without the system message.
    """

    name: str
    open_model: Callable[[], AbstractContextManager[Any]]
    messages: list[Message] = field(default_factory=list)


class Chat:
    """A conversation of the user with one or two models.

    On a terminal answers appear token by token. Otherwise each line of the input is a message, and only the answers
    are printed; of two models, each line begins with the model's name.
    """

    def __init__(
        self,
        trained: TrainedModel,
        speakers: Sequence[Speaker],
        settings: AnswerSettings,
        *,
        system: str | None = None,
        stdin: TextIO | None = None,
        console: Console | None = None,
    ) -> None:
        """Create the chat.

        Args:
            trained: The model of the run.
            speakers: Who answers, in this order.
            settings: How answers are generated.
            system: The system message; None: none.
            stdin: The input; standard input by default.
            console: The output; standard output by default.
        """
        self._trained, self._speakers, self._settings, self._system = trained, speakers, settings, system
        self._stdin = stdin or sys.stdin
        self._console = console or Console(highlight=False)
        self._interactive = self._stdin.isatty() and self._console.is_terminal

    def run(self) -> None:
        """Answer until the input ends."""
        if self._interactive:
            self._console.print(f"{self._trained.run.name}: /help lists the commands", style="dim")
        for line in self._lines():
            text = line.strip()
            if text in ("/quit", "/exit"):
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._answer(text)

    def _lines(self) -> Iterator[str]:
        if not self._interactive:
            yield from self._stdin
            return
        with suppress(EOFError, KeyboardInterrupt):
            import readline  # noqa: F401 - line editing and history of input()

            while True:
                yield input("\nyou  ")
        print()

    def _command(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name == "/reset":
            self._reset("new conversation")
        elif name == "/system":
            self._system = value.strip() or None
            self._reset("new conversation with this system message" if self._system else "no system message")
        else:
            self._note(HELP if name == "/help" else f"there is no command {name}\n{HELP}")

    def _reset(self, note: str) -> None:
        for speaker in self._speakers:
            speaker.messages.clear()
        self._note(note)

    def _note(self, text: str) -> None:
        if self._interactive:
            self._console.print(Text(text, style="dim"))
        else:
            print(text, file=sys.stderr)

    def _answer(self, text: str) -> None:
        """Let every speaker answer; an answer that Ctrl-C stops is kept as far as it came."""
        texts, cut = dict.fromkeys((speaker.name for speaker in self._speakers), ""), []
        for speaker in self._speakers:
            speaker.messages.append(Message("user", text))
        with self._open_display() as live:
            try:
                for speaker in self._speakers:
                    if self._answer_as(speaker, texts, live).finish == "length":
                        cut.append(speaker.name)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
            except HarnessError as error:
                for speaker in self._speakers:
                    speaker.messages.pop()
                if not self._interactive:
                    raise
                live.update(Text("; ".join(error.lines()), style="red"), refresh=True)
                return
            for speaker in self._speakers:
                speaker.messages.append(Message("assistant", texts[speaker.name]))
        if not self._interactive:
            for name, answer in texts.items():
                self._console.out(printable(f"{name}: {answer}" if len(texts) > 1 else answer), highlight=False)
        if cut:
            limit = self._settings.max_new_tokens
            self._note(f"cut after {limit} tokens ({', '.join(cut)}); --max-new-tokens N allows more")

    def _open_display(self) -> Live | _NoDisplay:
        if not self._interactive:
            return _NoDisplay()
        return Live(console=self._console, auto_refresh=False, vertical_overflow="visible")

    def _answer_as(self, speaker: Speaker, texts: dict[str, str], live: Live | _NoDisplay) -> Answer:
        def show(text: str) -> None:
            texts[speaker.name] = text
            live.update(self._render(texts), refresh=True)

        system = [Message("system", self._system)] if self._system else []
        with speaker.open_model() as model:
            answer: Answer = stream_answer(
                self._trained,
                model,
                [*system, *speaker.messages],
                self._settings,
                show,
                turn=len(speaker.messages) // 2,
            )
        show(answer.text)
        return answer

    def _render(self, texts: dict[str, str]) -> RenderableType:
        if len(texts) == 1:
            (text,) = texts.values()
            return Group(Text(printable(text)))
        table = Table.grid(expand=True, padding=(0, 1))
        for _ in texts:
            table.add_column(ratio=1)
        table.add_row(
            *(Panel(Text(printable(text)), title=name, border_style=COLORS[name]) for name, text in texts.items())
        )
        return table


class _NoDisplay:
    """Shows nothing while an answer is generated."""

    def __enter__(self) -> _NoDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, renderable: RenderableType, *, refresh: bool = False) -> None:
        """Do nothing."""
