"""Find rows that contain a tokenizer's turn markers as text: most likely a chat template has rendered them before.

In a message such a marker is plain text and is trained letter by letter, so the model would learn to spell it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data.tokenization.special_tokens import compile_alternation
from harness.errors import ComponentError, HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Progress, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEW_ROWS = 3
"""Rows of a source with markers that are not worth a warning: a row may be about a token."""

MAX_PLACES = 3
PROGRESS_INTERVAL = 10_000


@dataclass(frozen=True)
class RenderedRows:
    """The training rows of one source that contain turn markers.

    Attributes:
        rows: Rows searched.
        rendered: Rows with a marker.
        marker: The marker in most of them.
        places: Locations of the first ones.
    """

    rows: int
    rendered: int
    marker: str
    places: tuple[str, ...]


def turn_markers(tokenizer: PreTrainedTokenizerBase, template: Template) -> tuple[str, ...]:
    """Return the tokens that begin or end a turn or a sequence: special tokens and the template's own.

    Tokens for padding, unknown text and masks, and reserved ones, occur in no rendered text.
    """
    ignored = {tokenizer.unk_token, tokenizer.mask_token}
    if tokenizer.pad_token != tokenizer.eos_token:
        ignored.add(tokenizer.pad_token)
    added = tokenizer.added_tokens_decoder.values()
    special = [token.content for token in added if token.special and "reserved" not in token.content]
    own = {token.content for token in added}
    try:
        stops = template.stop_strings(tokenizer)
    except ComponentError:
        raise
    except HarnessError:  # the template has refused this tokenizer already, at a row
        stops = ()
    written = [text for text in (*stops, *template.control_tokens) if text in own]
    return tuple(dict.fromkeys(text for text in (*special, *written) if text.strip() and text not in ignored))


def find_rendered_rows(
    training: Mapping[str, Iterable[Example]], markers: Iterable[str], progress: Progress = no_progress
) -> dict[str, RenderedRows]:
    """Return, by source, the rows that contain a marker, where there are more than `FEW_ROWS` of them.

    Args:
        training: Source -> its rows, each read once, in order.
        markers: See `turn_markers`.
        progress: Receives the phase `search for turn markers`, in rows.
    """
    pattern = compile_alternation(markers)
    if pattern is None:
        return {}
    found: dict[str, RenderedRows] = {}
    for source, rows in training.items():
        counts: Counter[str] = Counter()
        places: list[str] = []
        rendered = total = 0
        for total, row in enumerate(rows, 1):
            matches = {match[0] for text in _texts(row) for match in pattern.finditer(text)}
            if matches:
                rendered += 1
                counts.update(matches)
                places += [row.location] if len(places) < MAX_PLACES else []
            if not total % PROGRESS_INTERVAL:
                progress("search for turn markers", total, 0, source, "rows")
        if rendered > FEW_ROWS:
            found[source] = RenderedRows(total, rendered, max(sorted(counts), key=counts.__getitem__), tuple(places))
    return found


def _texts(row: Example) -> Iterator[str]:
    for message in row.messages:
        yield message.content
        if message.input is not None:
            yield message.input
        if message.reasoning is not None:
            yield message.reasoning
