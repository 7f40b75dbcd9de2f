"""A tokenised row for the eye, turn by turn: what is trained, what is not, and which tokens are control tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from harness.data.tokenization.rendering import Rendering
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.registry import Registry
from harness.runner import prepare
from harness.spec.spec import Spec
from harness.types import Example, Message, Span, TokenizedExample
from harness.utils.formatting import encodable_segments, one_line, printable


def locate_turns(
    spans: Sequence[Span], messages: Sequence[Message], controls: Collection[str]
) -> list[tuple[str, int]]:
    """Who speaks in each turn and where in the joined text it begins, in characters; the first at 0.

    controls: the texts of control tokens. Messages that a template writes as one content are one turn, `system + user`.
    """
    found: list[tuple[str, int]] = []
    speaker, place = -1, 0
    gap, gap_begins, closed, trained = "", 0, 0, False
    for span in spans:
        place += len(span.text)
        if span.markup:
            if span.train and trained and closed == len(gap):  # the end of a response, not the beginning of another
                closed += len(span.text)
            gap += span.text
            continue
        first, last = _message_range(span, messages, speaker)
        if last != speaker:
            begins = gap_begins + _find_turn_boundary(gap, closed, controls) if found else 0
            found.append((" + ".join(map(_format_speaker, messages[first : last + 1])), begins))
            speaker = last
        gap, gap_begins, closed, trained = "", place, 0, span.train
    return found or [(" + ".join(map(_format_speaker, messages)), 0)]


def _message_range(span: Span, messages: Sequence[Message], speaker: int) -> tuple[int, int]:
    """The first and the last message that a content holds; the current speaker where it is no other's."""
    said = span.text.strip()
    for first in range(speaker, len(messages)):
        if first < 0 or not _matches_message(messages[first], said, span.train):
            continue
        if first == speaker:
            return speaker, speaker
        last = first
        while (
            last + 1 < len(messages)
            and said != messages[last].content.strip()
            and _contains_message(said, messages[last + 1])
        ):
            last += 1
        return min(speaker + 1, first), last
    return speaker, speaker


def _matches_message(message: Message, span_text: str, trained: bool) -> bool:
    if trained and message.role != "assistant":
        return False
    texts = [message.content.strip(), (message.input or "").strip()]
    if trained or not message.train:  # else the name of a tool would be taken for its call wherever tools are described
        texts += [call.name for call in message.tool_calls]
    return any(text and (span_text in text or text in span_text) for text in texts)


def _contains_message(span_text: str, message: Message) -> bool:
    return bool(message.content.strip()) and message.content.strip() in span_text


def _find_turn_boundary(gap: str, turn_end: int, controls: Collection[str]) -> int:
    """Where in what stands between two contents the turn of the first one ends."""
    if not turn_end:
        at = [match for one in controls if one.strip() for match in re.finditer(re.escape(one), gap)]
        at.sort(key=lambda match: match.start())
        turn_end = at[0].end() if len(at) > 1 else 0
    return turn_end + len(gap[turn_end:]) - len(gap[turn_end:].lstrip("\n"))


def _format_speaker(message: Message) -> str:
    return f"{message.role} {message.name}" if message.name else message.role


TRAINED_STYLE, UNTRAINED_STYLE, CONTROL_STYLE, LABEL_STYLE = "bold green", "dim", "underline", "bold cyan"
TRAINED_OPEN, TRAINED_CLOSE = "⟦", "⟧"
LINE_BREAK_SIGN = "↵"
"""A line break that ends a turn: seen so, it costs no empty line, and whether it is trained can be told."""


@dataclass(frozen=True)
class PreviewTurn:
    """One turn of a row.

    label: who speaks; several, where the template writes them as one. tokens: how many it has; trained: of them, so
    many are trained. text: as it is tokenised, printable, the trained tokens marked.
    """

    label: str
    tokens: int
    trained: int
    text: Text


class RowPreview:
    """A row turn by turn, beside the name of who speaks; a column of its own, so that no text can pass for a name.

    tokens_cut: tokens that truncation took from its end.
    """

    def __init__(
        self, turns: Sequence[PreviewTurn], tools: Sequence[Mapping[str, Any]] = (), tokens_cut: int = 0
    ) -> None:
        self._turns, self._tools, self._tokens_cut = turns, tools, tokens_cut

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.MINIMAL, show_header=False, show_edge=False, pad_edge=False)
        table.add_column(style=LABEL_STYLE, overflow="fold", max_width=max(options.max_width // 3, 8))
        table.add_column(overflow="fold")
        if self._tools:
            table.add_row("tools", Text("\n".join(map(_format_tool, self._tools))))
        for turn in self._turns:
            share = Text(f"\n{turn.trained} of {turn.tokens}\ntrained" if turn.trained else "", style="green")
            table.add_row(Text.assemble(turn.label, share), turn.text)
        if self._tokens_cut:
            table.add_row("cut", Text(f"{self._tokens_cut:,} more tokens lie beyond max_length", style="red"))
        yield from encodable_segments(table, console, options)


def split_into_turns(
    example: Example,
    row: TokenizedExample,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    plain: bool = False,
) -> tuple[PreviewTurn, ...]:
    """The turns of a row, special tokens included; a turn that is cut off wholly is left out.

    row: the example's, of the same template and tokenizer. Trained tokens are bold green, the others dim, special ones
    underlined. plain: no styles; trained stretches stand between ⟦ and ⟧ instead, for where there is no colour.
    """
    labels, firsts = _locate_turns(example, row, template, tokenizer)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = []
    for label, begin, end in zip(labels, firsts, [*firsts[1:], len(row.input_ids)], strict=True):
        if begin < end:
            trained = sum(label != -100 for label in row.labels[begin:end])
            text = _format_tokens(row, begin, end, tokenizer, special, plain)
            found.append(PreviewTurn(label, end - begin, trained, text))
    return tuple(found)


def _locate_turns(
    example: Example, row: TokenizedExample, template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[int]]:
    """Who speaks in each turn, and the token that it begins with."""
    messages = example.messages
    if len(messages) == 1:  # a plain text, which no template renders
        return [messages[0].role], [0]
    spans = (
        template.render(messages, tokenizer, tools=example.tools)
        if example.tools
        else template.render(messages, tokenizer)
    )
    found = locate_turns(spans, messages, tokenizer.added_tokens_encoder)
    ((ids, offsets),) = tokenize_with_offsets(
        [Rendering.from_spans(spans, template.control_tokens)], tokenizer, [example.location]
    )
    start = special_token_guard(tokenizer).bos_prefix
    before = 0 if tuple(ids[: len(start)]) == start else len(start)
    ends = [end for _, end in offsets]
    # A token that reaches over the border belongs to the turn in which it ends.
    firsts = [min(bisect_right(ends, place) + before, len(row.input_ids)) for _, place in found]
    return [one_line(label, 40) for label, _ in found], [0, *firsts[1:]]


def _format_tool(tool: Mapping[str, Any]) -> str:
    """A tool as `name(parameter, …): what it does`."""
    parameters = tool.get("parameters") or {}
    names = ", ".join(map(str, parameters.get("properties", {})))
    said = f": {tool['description']}" if tool.get("description") else ""
    return one_line(f"{tool.get('name', '?')}({names}){said}")


def _format_tokens(
    row: TokenizedExample, begin: int, end: int, tokenizer: PreTrainedTokenizerBase, special: set[int], plain: bool
) -> Text:
    text = Text()
    pieces = list(_iter_uniform_spans(row, begin, end, tokenizer, special))
    inside = False
    for number, (piece, trained, control) in enumerate(pieces, 1):
        piece = printable(piece)  # a row's text is anybody's, and must not steer the terminal
        if number == len(pieces) and piece.endswith("\n"):
            piece = piece[:-1] + LINE_BREAK_SIGN
        if plain:
            text.append(("" if trained == inside else TRAINED_OPEN if trained else TRAINED_CLOSE) + piece)
        else:
            text.append(
                piece, style=(TRAINED_STYLE if trained else UNTRAINED_STYLE) + (f" {CONTROL_STYLE}" if control else "")
            )
        inside = trained
    if plain and inside:
        text.append(TRAINED_CLOSE)
    return text


def _iter_uniform_spans(
    row: TokenizedExample, begin: int, end: int, tokenizer: PreTrainedTokenizerBase, special: set[int]
) -> Iterator[tuple[str, bool, bool]]:
    """(text, trained, special) of each stretch of tokens that are alike."""
    kinds = [(label != -100, token in special) for token, label in zip(row.input_ids, row.labels, strict=True)]
    before = _decode_ids(row.input_ids[:begin], tokenizer)
    first = begin
    for place in range(begin + 1, end + 1):
        if place < end and kinds[place] == kinds[first]:
            continue
        # Decoded with what stands before it: by itself, a stretch would lose its leading space in some tokenizers.
        upto = _decode_ids(row.input_ids[:place], tokenizer)
        piece = upto[len(before) :] if upto.startswith(before) else _decode_ids(row.input_ids[first:place], tokenizer)
        yield piece, *kinds[first]
        first, before = place, upto


def _decode_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def preview_rows(spec: Spec, registry: Registry, source: str | None, rows: int, *, plain: bool) -> list[RenderableType]:
    """The first rows of a source, or of every trained one, turn by turn, as they are trained: trained tokens marked."""
    ready = prepare.prepare_run(spec, registry, use_shares=False)
    if source is not None and source not in ready.data.tokenized_rows:
        raise HarnessError(
            "--source", f"no trained source is called {source!r}", f"there are: {', '.join(ready.data.tokenized_rows)}"
        )
    shown: list[RenderableType] = []
    for name in [source] if source is not None else list(ready.data.tokenized_rows):
        told = ready.data.sources[name]
        for number, row in enumerate(told.at_longest_length.rows[:rows]):
            example, cut = (
                told.training_examples[int(told.at_longest_length.example_indices[number])],
                int(told.at_longest_length.tokens_cut[number]),
            )
            facts = f"{len(row.input_ids)} tokens, {row.loss_tokens} trained"
            title = f"{name} row {number + 1} ({one_line(example.location)}): {facts}"
            shown.append(Text(title, style="bold"))
            spoken = split_into_turns(example, row, ready.template, ready.tokenizer, plain=plain)
            shown.append(RowPreview(spoken, example.tools, cut))
            shown.append(Text(""))
    return shown
