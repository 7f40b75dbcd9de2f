"""Tokenized rows for the terminal, turn by turn, with trained tokens and control tokens marked."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from harness.data.tokenization.rendering import Rendering
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.model.cached_tokenizer import load_light_tokenizer
from harness.registry import Registry
from harness.runner import prepare
from harness.spec.spec import Spec
from harness.types import Example, Message, Span, TokenizedExample
from harness.utils.formatting import encodable_segments, one_line, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED_STYLE, UNTRAINED_STYLE, CONTROL_STYLE, LABEL_STYLE = "bold green", "dim", "underline", "bold cyan"
TRAINED_OPEN, TRAINED_CLOSE = "⟦", "⟧"
LINE_BREAK_SIGN = "↵"
"""A line break that ends a turn: as a sign it costs no empty line and shows whether it is trained."""


def preview_rows(spec: Spec, registry: Registry, source: str | None, rows: int, *, plain: bool) -> list[RenderableType]:
    """Show the first rows of a trained source, turn by turn, as they are trained.

    Args:
        spec: The spec whose rows are prepared.
        registry: The plugins.
        source: Name of the source; None: every trained source.
        rows: Rows to show of each source.
        plain: Mark trained tokens with `⟦ ⟧` instead of styles.

    Raises:
        HarnessError: If no trained source has this name.
    """
    prepared = prepare.prepare_run(spec, registry, use_shares=False, load_light=load_light_tokenizer)
    names = list(prepared.data.tokenized_rows)
    if source is not None and source not in names:
        raise HarnessError("--source", f"there is no trained source {source!r}", f"there are: {', '.join(names)}")
    parts: list[RenderableType] = []
    for name in [source] if source is not None else names:
        prepared_source = prepared.data.sources[name]
        tokenized = prepared_source.at_longest_length
        for index, row in enumerate(tokenized.rows[:rows]):
            example = prepared_source.training_examples[int(tokenized.example_indices[index])]
            counts = f"{len(row.input_ids)} tokens, {row.loss_tokens} trained"
            title = f"{name} row {index + 1} ({one_line(example.location)}): {counts}"
            turns = split_into_turns(example, row, prepared.template, prepared.tokenizer, plain=plain)
            preview = RowPreview(turns, example.tools, int(tokenized.tokens_cut[index]))
            parts += [Text(title, style="bold"), preview, Text("")]
    return parts


@dataclass(frozen=True)
class PreviewTurn:
    """One turn of a row.

    Attributes:
        label: The speaker; several, joined by ` + `, where the template renders their messages as one content.
        tokens: Number of tokens.
        trained: Number of trained tokens.
        text: The tokenized text, printable, with the trained tokens marked.
    """

    label: str
    tokens: int
    trained: int
    text: Text


class RowPreview:
    """A row, turn by turn, with the speakers in a column of their own: no text can pass for a speaker.

    Args:
        turns: The turns, in order.
        tools: JSON Schemas of the tools that the row declares.
        tokens_cut: Number of tokens that truncation removed from the end of the row.
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
            trained = f"\n{turn.trained} of {turn.tokens}\ntrained" if turn.trained else ""
            table.add_row(Text.assemble(turn.label, (trained, "green")), turn.text)
        if self._tokens_cut:
            table.add_row("cut", Text(f"{self._tokens_cut:,} more tokens are beyond max_length", style="red"))
        yield from encodable_segments(table, console, options)


def split_into_turns(
    example: Example,
    row: TokenizedExample,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    plain: bool = False,
) -> tuple[PreviewTurn, ...]:
    """Split a row into its turns, special tokens included; turns that are cut off completely are left out.

    Trained tokens are bold green, the others dim, special tokens underlined.

    Args:
        example: The conversation.
        row: Its tokens, from the same template and tokenizer.
        template: Renders the conversation.
        tokenizer: Tokenizes it.
        plain: Mark trained spans with `⟦ ⟧` instead of styles, for output without color.
    """
    labels, first_tokens = _locate_turn_tokens(example, row, template, tokenizer)
    special_ids = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    turns = []
    for label, begin, end in zip(labels, first_tokens, [*first_tokens[1:], len(row.input_ids)], strict=True):
        if begin < end:
            trained = sum(target != -100 for target in row.labels[begin:end])
            text = _format_tokens(list(_iter_uniform_spans(row, begin, end, tokenizer, special_ids)), plain)
            turns.append(PreviewTurn(label, end - begin, trained, text))
    return tuple(turns)


def _locate_turn_tokens(
    example: Example, row: TokenizedExample, template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[int]]:
    """Return the speaker of each turn and the index of its first token."""
    messages = example.messages
    if len(messages) == 1:  # plain text, which no template renders
        return [messages[0].role], [0]
    spans = (
        template.render(messages, tokenizer, tools=example.tools)
        if example.tools
        else template.render(messages, tokenizer)
    )
    turns = locate_turns(spans, messages, tokenizer.added_tokens_encoder)
    ((ids, offsets),) = tokenize_with_offsets(
        [Rendering.from_spans(spans, template.control_tokens)], tokenizer, [example.location]
    )
    bos_prefix = special_token_guard(tokenizer).bos_prefix
    shift = 0 if tuple(ids[: len(bos_prefix)]) == bos_prefix else len(bos_prefix)
    ends = [end for _, end in offsets]
    # A token that crosses the boundary belongs to the turn in which it ends.
    first_tokens = [min(bisect_right(ends, position) + shift, len(row.input_ids)) for _, position in turns]
    return [one_line(label, 40) for label, _ in turns], [0, *first_tokens[1:]]


def locate_turns(
    spans: Sequence[Span], messages: Sequence[Message], controls: Collection[str]
) -> list[tuple[str, int]]:
    """Return the speaker of each turn and the character of the joined text at which the turn begins.

    The first turn begins at 0. Messages that the template renders as one content are one turn, `system + user`.

    Args:
        spans: The rendered conversation.
        messages: Its messages.
        controls: Texts of the control tokens.
    """
    turns: list[tuple[str, int]] = []
    speaker, position = -1, 0  # index of the message of the current turn; characters before the next span
    # The markup since the last content, where it begins, how many of its characters belong to the turn before it, and
    # whether that turn is trained.
    gap, gap_begin, closed, trained = "", 0, 0, False
    for span in spans:
        position += len(span.text)
        if span.markup:
            if span.train and trained and closed == len(gap):  # the end of a response, not the beginning of another
                closed += len(span.text)
            gap += span.text
            continue
        first, last = _message_range(span, messages, speaker)
        if last != speaker:
            begin = gap_begin + _find_turn_boundary(gap, closed, controls) if turns else 0
            turns.append((" + ".join(map(_format_speaker, messages[first : last + 1])), begin))
            speaker = last
        gap, gap_begin, closed, trained = "", position, 0, span.train
    return turns or [(" + ".join(map(_format_speaker, messages)), 0)]


def _message_range(span: Span, messages: Sequence[Message], speaker: int) -> tuple[int, int]:
    """Return the first and the last message that a content holds; the current speaker if it matches no other."""
    content = span.text.strip()
    for first in range(speaker, len(messages)):
        if first < 0 or not _matches_message(messages[first], content, span.train):
            continue
        if first == speaker:
            return speaker, speaker
        last = first
        while (
            last + 1 < len(messages)
            and content != messages[last].content.strip()
            and _contains_message(content, messages[last + 1])
        ):
            last += 1
        return min(speaker + 1, first), last
    return speaker, speaker


def _matches_message(message: Message, span_text: str, trained: bool) -> bool:
    if trained and message.role != "assistant":
        return False
    texts = [message.content.strip(), (message.input or "").strip()]
    if trained or not message.train:  # otherwise a tool's name in the tool descriptions would match its call
        texts += [call.name for call in message.tool_calls]
    return any(text and (span_text in text or text in span_text) for text in texts)


def _contains_message(span_text: str, message: Message) -> bool:
    return bool(message.content.strip()) and message.content.strip() in span_text


def _find_turn_boundary(gap: str, turn_end: int, controls: Collection[str]) -> int:
    """Return where the turn of the first content ends in the markup between two contents."""
    if not turn_end:
        matches = [match for text in controls if text.strip() for match in re.finditer(re.escape(text), gap)]
        matches.sort(key=lambda match: match.start())
        turn_end = matches[0].end() if len(matches) > 1 else 0
    return turn_end + len(gap[turn_end:]) - len(gap[turn_end:].lstrip("\n"))


def _format_speaker(message: Message) -> str:
    return f"{message.role} {message.name}" if message.name else message.role


def _format_tool(tool: Mapping[str, Any]) -> str:
    """Format a tool as `name(parameter, …): description`."""
    parameters = tool.get("parameters") or {}
    names = ", ".join(map(str, parameters.get("properties", {})))
    description = f": {tool['description']}" if tool.get("description") else ""
    return one_line(f"{tool.get('name', '?')}({names}){description}")


def _format_tokens(spans: Sequence[tuple[str, bool, bool]], plain: bool) -> Text:
    """Format the spans of a turn, each as (text, trained, special)."""
    text = Text()
    inside = False
    for index, (piece, trained, special) in enumerate(spans, 1):
        piece = printable(piece)  # the text of a row must not control the terminal
        if index == len(spans) and piece.endswith("\n"):
            piece = piece[:-1] + LINE_BREAK_SIGN
        if plain:
            bracket = "" if trained == inside else TRAINED_OPEN if trained else TRAINED_CLOSE
            text.append(bracket + piece)
        else:
            style = TRAINED_STYLE if trained else UNTRAINED_STYLE
            text.append(piece, style=f"{style} {CONTROL_STYLE}" if special else style)
        inside = trained
    if plain and inside:
        text.append(TRAINED_CLOSE)
    return text


def _iter_uniform_spans(
    row: TokenizedExample, begin: int, end: int, tokenizer: PreTrainedTokenizerBase, special_ids: set[int]
) -> Iterator[tuple[str, bool, bool]]:
    """Yield (text, trained, special) of each longest span of tokens that are alike."""
    kinds = [(label != -100, token in special_ids) for token, label in zip(row.input_ids, row.labels, strict=True)]
    text_before = _decode_ids(row.input_ids[:begin], tokenizer)
    first = begin
    for index in range(begin + 1, end + 1):
        if index < end and kinds[index] == kinds[first]:
            continue
        # Decoded together with the tokens before it: alone, a span loses its leading space in some tokenizers.
        text = _decode_ids(row.input_ids[:index], tokenizer)
        piece = (
            text[len(text_before) :]
            if text.startswith(text_before)
            else _decode_ids(row.input_ids[first:index], tokenizer)
        )
        yield piece, *kinds[first]
        first, text_before = index, text


def _decode_ids(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
