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

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from harness.data.tokenization.label_mask import Masked, Run, masked
from harness.data.tokenization.prompts import prompt_tokens
from harness.data.tokenization.rendering import Rendering, is_text, name_of, trained_messages
from harness.data.tokenization.special_tokens import markers, tokenise
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Message, Row

if TYPE_CHECKING:
    from harness.data.tokenization.label_mask import Encoded


class Decoder:
    """Decodes stretches of tokens as they stand within a row.

    Many decoders drop the space that a text begins with, so each stretch is decoded behind a letter, taken off then.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._anchor = list(tokenizer("a", add_special_tokens=False).input_ids)
        self._before = self._backend.decode(self._anchor, skip_special_tokens=False)
        self._normalizer = self._backend.normalizer

    def texts(self, stretches: Sequence[Sequence[int]]) -> list[str]:
        """The text of each stretch, special tokens written out."""
        anchor, before = self._anchor, self._before
        texts = self._backend.decode_batch([anchor + list(ids) for ids in stretches], skip_special_tokens=False)
        return [
            text[len(before) :] if text.startswith(before) else self._backend.decode(list(ids), False)
            for text, ids in zip(texts, stretches, strict=True)
        ]

    def text(self, ids: Sequence[int]) -> str:
        """The text of one stretch."""
        return self.texts([ids])[0]

    def normal(self, text: str) -> str:
        """A text as its tokens will be decoded, as far as the tokenizer's normaliser tells, squashed."""
        return squashed(self._normalizer.normalize_str(text) if self._normalizer is not None else text)


def squashed(text: str) -> str:
    """The text without white space, and without the sign that some tokenizers write for it."""
    return "".join(text.replace("▁", " ").split())


HINT = "look at the row with `harness preview`, and mend the template or choose another"


class Thorough:
    """Proofs of rows of one template and tokenizer. Each raises HarnessError, with the row's place, when it fails."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self.tokenizer, self.decoder = template, tokenizer, Decoder(tokenizer)
        self._known = tokenizer.added_tokens_encoder
        self._mark, self._end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.stops = tuple(stop for stop in template.stops(tokenizer) if squashed(stop))
        self._ends = {self._end, *(self._known[stop] for stop in self.stops if stop in self._known)}

    def stretches(self, example: Example, row: Masked) -> list[int]:
        """The messages that the row's trained stretches must be of, one for each."""
        wanted = trained_messages(example)
        if len(wanted) != len(row.runs):
            what = f"there are {len(wanted)} responses to train and {len(row.runs)} trained stretches"
            raise self.wrong(example, what)
        return wanted

    def header(self, example: Example, ids: Sequence[int], begin: int, index: int) -> None:
        """No token of what precedes response `index` is trained. begin: where its stretch begins."""
        start, rest = prompt_tokens(example, example.messages[:index], self.template, self.tokenizer)
        prompt = [*start, *rest]
        same = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        inside = begin < same
        if same < len(prompt):
            # A token may take in the prompt's last character and the response's first; it stands before `begin` then.
            before, whole = self.decoder.text(ids[:begin]), self.decoder.text(prompt)
            inside = inside or not squashed(before).startswith(squashed(whole))
        if inside:
            raise self.wrong(example, f"a token of what precedes response {index + 1} is trained")

    def response(self, example: Example, ids: Sequence[int], run: Run, index: int) -> None:
        """The stretch holds response `index`, its calls, its end of turn, and nothing else."""
        message, within = example.messages[index], ids[run[0] : run[1]]
        text = self.decoder.text(within)
        whole = squashed(text)
        content = Rendering(message.content, (), (), ())
        ((content_ids, _),) = tokenise([content], self.tokenizer, [example.place])
        expected = squashed(self.decoder.text(content_ids))
        place = whole.find(expected)
        if place < 0:
            raise self.wrong(example, f"the trained tokens do not hold the text of response {index + 1}")
        rest = whole[place + len(expected) :]
        if message.calls:
            calls = self._without_stops(rest)
            self._hold_calls(example, calls, message, index)
            rest = rest[len(calls) :]
        ended = False
        while stop := next((stop for stop in self.stops if rest.startswith(squashed(stop))), None):
            rest = rest[len(squashed(stop)) :]
            ended = ended or stop not in self._known or self._known[stop] in within
        if not ended:
            raise self.wrong(example, f"the end of turn after response {index + 1} is not trained")
        if not rest and not text.endswith(tuple(self.stops)):
            rest = text[len(text.rstrip()) :]
        if rest:
            raise self.wrong(example, f"text after the end of response {index + 1} is trained: {rest[:40]!r}")

    def text(self, example: Example, row: Masked, start: int) -> None:
        """A plain text and the end-of-sequence token are trained, except its first token. start: tokens put first."""
        if row.runs != [(max(start, 1), len(row.ids))]:
            raise self.wrong(example, "not all of the text is trained")
        end, content = str(self.tokenizer.eos_token), example.messages[0].content
        if row.ids[-1] != self._end:
            raise self.wrong(example, "the end of the text is not trained")
        text = self.decoder.text(row.ids[start:])
        if text == content + end or squashed(text) == self.decoder.normal(content) + squashed(end):
            return
        ((ids, _),) = tokenise([Rendering(content, (), (), ())], self.tokenizer, [example.place])
        if squashed(text) != squashed(self.decoder.text(ids)) + squashed(end):
            raise self.wrong(example, "the tokens are not those of the text")

    def beginning(self, example: Example, row: Masked, start: Sequence[int]) -> None:
        """The begin-of-sequence token stands first where the tokenizer puts it, and never twice in a row.

        Elsewhere a format may open its turns with it; where the tokenizer puts it, only after the end of a turn.
        """
        ids, mark = row.ids, self._mark
        if ids[: len(start)] != list(start):
            raise self.wrong(example, "it does not begin as the tokenizer begins a text")
        if mark is None or ids.count(mark) < 2:
            return
        place = ids.index(mark)
        for _ in range(ids.count(mark) - 1):
            last, place = place, ids.index(mark, place + 1)
            # Where one token does for both, the first of a pair ends a turn, unless it opens the row.
            twice = place == last + 1 and (mark != self._end or last == 0)
            if twice or (mark in start and ids[place - 1] not in self._ends):
                what = f"a second begin-of-sequence token ({self.tokenizer.bos_token}) stands at token {place + 1}"
                raise self.wrong(example, what)

    def wrong(self, example: Example, what: str) -> HarnessError:
        """The error of a row whose mask is wrong."""
        return HarnessError(example.place, f"the mask of the template {name_of(self.template)} is wrong: {what}", HINT)

    def _without_stops(self, text: str) -> str:
        while stop := next((stop for stop in self.stops if text.endswith(squashed(stop))), None):
            text = text[: -len(squashed(stop))]
        return text

    def _hold_calls(self, example: Example, text: str, message: Message, index: int) -> None:
        names = [Rendering(call.name, (), (), ()) for call in message.calls]
        found = tokenise(names, self.tokenizer, [example.place] * len(names))
        if not in_order(text, [squashed(self.decoder.text(ids)) for ids, _ in found]):
            raise self.wrong(example, f"the trained tokens do not hold the calls of response {index + 1}")


def in_order(text: str, words: Sequence[str]) -> bool:
    """Whether the text, squashed, holds the words one after the other.

    Of calls, only the tools' names are looked for: how a format writes the rest, it alone knows.
    """
    place = 0
    for word in words:
        found = text.find(word, place)
        if found < 0:
            return False
        place = found + len(word)
    return True


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
