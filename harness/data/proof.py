"""Proves masks: that each response to be trained and its end of turn are trained, and nothing else.

The proof does not look at the spans that a mask came from: it decodes the tokens that are trained and holds them
against the messages. Every row is proven so. That a trained stretch begins where the prompt for it ends costs more to
know, for that prompt must be rendered and tokenised: it is proven for the first row of every shape, for a sample, and
for every row in which a stretch does not look exactly like one that has been proven so.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from harness.contracts import Example, Message, Row, Template
from harness.data.decoded import squashed
from harness.data.markers import markers
from harness.data.mask import Masked, Run, masked
from harness.data.rendering import is_text
from harness.data.thorough import Thorough, in_order

if TYPE_CHECKING:
    from harness.data.encode import Encoded

SAMPLE = 1000
"""One row in so many is proven thoroughly whatever it looks like; chosen by its id."""

DEPTH = 4
"""Tokens in front of a stretch that must be the same for it to look alike; the last control token is the farthest."""

NEW = 64
"""New looks of these tokens after which one fewer is compared: the format writes fewer of them than that."""

Look = tuple[str, str, int]
"""White space before a response in its stretch, what stands after it, and the last token."""


class Prover:
    """Proves the rows of one template and tokenizer. proven: rows so far. thorough: those done thoroughly."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.proven = self.thorough = 0
        self._thorough = Thorough(template, tokenizer)
        self._start = markers(tokenizer).start
        self._control = markers(tokenizer).possible
        self._shapes: set[object] = set()
        self._looks: dict[Look, None] = {}
        self._heads: set[tuple[int, ...]] = set()
        self._depth, self._new = DEPTH, 0

    def prove(self, examples: Sequence[Example], rows: Sequence[Masked]) -> None:
        """Prove these rows, which are whole. Raises HarnessError for the first one that is not proven."""
        decoded = iter(self._thorough.decoder.texts([row.ids[a:b] for row in rows for a, b in row.runs]))
        for example, row in zip(examples, rows, strict=True):
            texts = [next(decoded) for _ in row.runs]
            if is_text(example):
                self._thorough.text(example, row, len(self._start))
            else:
                self._conversation(example, row, texts)
            self._thorough.beginning(example, row, self._start)
            self.proven += 1

    def _conversation(self, example: Example, row: Masked, texts: Sequence[str]) -> None:
        wanted = self._thorough.stretches(example, row)
        shape = _shape(example)
        if shape in self._shapes and zlib.crc32(example.id.encode()) % SAMPLE:
            messages = [example.messages[index] for index in wanted]
            if all(map(self._alike, messages, texts, [row.ids] * len(texts), row.runs)):
                return
        self.thorough += 1
        for (begin, end), index, text in zip(row.runs, wanted, texts, strict=True):
            self._thorough.header(example, row.ids, begin, index)
            self._thorough.response(example, row.ids, (begin, end), index)
            self._learn(example.messages[index], text, row.ids, (begin, end))
        self._shapes.add(shape)

    def _alike(self, message: Message, text: str, ids: list[int], run: Run) -> bool:
        """Whether the stretch looks like one that has been proven, but for the response in it."""
        begin, end = run
        last = ids[end - 1]
        if self._head(ids, begin) not in self._heads:
            return False
        if last < len(self._control) and self._control[last] and ids[begin:end].count(last) != 1:
            return False  # a turn that ends within the stretch
        content = message.content
        for lead, tail, ending in self._looks:
            if ending != last or not text.endswith(tail):
                continue
            if message.calls:
                middle = text[len(lead) + len(content) : len(text) - len(tail)]
                names = [squashed(call.name) for call in message.calls]
                alike = text.startswith(lead + content) and in_order(squashed(middle), names)
            else:
                alike = text == f"{lead}{content}{tail}" or self._rewritten(content, text, lead, tail)
            if alike:
                return True
        return False

    def _rewritten(self, content: str, text: str, lead: str, tail: str) -> bool:
        """Whether the text is the content, stripped by the template or normalised by the tokenizer.

        White space that it begins with may be missing in part: a token may join it to the header.
        """
        core = content.strip()
        if core != content:
            begin, end = content[: len(content) - len(content.lstrip())], content[len(content.rstrip()) :]
            before, found, after = text[: len(text) - len(tail)].partition(core)
            if found and end.startswith(after) and before.startswith(lead) and begin.endswith(before[len(lead) :]):
                return True
        begins = text[: len(text) - len(text.lstrip())] == lead
        return begins and squashed(text) == self._thorough.decoder.normal(content) + squashed(tail)

    def _learn(self, message: Message, text: str, ids: list[int], run: Run) -> None:
        head = self._head(ids, run[0])
        if head not in self._heads:
            self._heads.add(head)
            self._new += 1
        if self._new == NEW and self._depth > 1:
            self._depth, self._new = self._depth - 1, 0
            self._heads = {known[-self._depth :] for known in self._heads}
        if message.calls or message.content != message.content.strip():
            return
        lead, found, tail = text.partition(message.content)
        if lead.strip() and found:
            return
        if not found:  # the tokenizer writes it otherwise
            lead = text[: len(text) - len(text.lstrip())]
            ending = squashed(text)[len(self._thorough.decoder.normal(message.content)) :]
            tail = next((stop for stop in self._thorough.stops if squashed(stop) == ending), "")
        if tail:
            self._looks[lead, tail, ids[run[1] - 1]] = None

    def _head(self, ids: list[int], begin: int) -> tuple[int, ...]:
        """What stands right before a stretch: up to the last control token, a few tokens at most."""
        at = begin
        while at > 0 and begin - at < self._depth:
            at -= 1
            if ids[at] < len(self._control) and self._control[ids[at]]:
                break
        return tuple(ids[at:begin])


def prove(example: Example, encoded: Encoded, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise HarnessError, with the row's place, unless the row trains each response and its end of turn, and no header.

    Every trained stretch is proven thoroughly. A truncated row must be the beginning of the whole row, which is proven
    in its stead. White space is not compared: some tokenizers do not keep it.
    """
    row, thorough = encoded.row, Thorough(template, tokenizer)
    if len(row.labels) != len(row.input_ids):
        raise thorough.wrong(example, f"there are {len(row.labels)} labels for {len(row.input_ids)} tokens")
    if any(label not in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True)):
        raise thorough.wrong(example, "a label is another token than the one that it stands at")
    whole = Masked(list(row.input_ids), trained_runs(row))
    if encoded.cut:
        length = len(row.input_ids)
        whole = masked(example, template, tokenizer)
        cut = [(begin, min(end, length)) for begin, end in whole.runs if begin < length]
        if (whole.ids[:length], cut) != (list(row.input_ids), trained_runs(row)):
            raise thorough.wrong(example, "the truncated row is not the beginning of the whole one")
    start = markers(tokenizer).start
    if is_text(example):
        thorough.text(example, whole, len(start))
    else:
        for run, index in zip(whole.runs, thorough.stretches(example, whole), strict=True):
            thorough.header(example, whole.ids, run[0], index)
            thorough.response(example, whole.ids, run, index)
    thorough.beginning(example, whole, start)


def trained_runs(row: Row) -> list[Run]:
    """The stretches of trained tokens, (begin, end), in order."""
    runs: list[Run] = []
    for place, label in enumerate(row.labels):
        if label == -100:
            continue
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _shape(example: Example) -> object:
    """What tells conversations apart that a template may render along other paths."""
    return (
        bool(example.tools),
        *(
            (m.role, not m.content or m.content.isspace(), not m.input, bool(m.calls), m.trained, m.name is None)
            for m in example.messages
        ),
    )
