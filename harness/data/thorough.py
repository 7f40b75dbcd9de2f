"""The thorough proof of a row: a trained stretch begins where the prompt for its response ends, and holds it whole.

White space within a response is not compared: some tokenizers do not keep it.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from harness.contracts import Example, Message, Template
from harness.data.decoded import Decoder, squashed
from harness.data.markers import tokenise
from harness.data.mask import Masked, Run
from harness.data.prompts import prompt_tokens
from harness.data.rendering import Rendering, name_of, trained_messages
from harness.errors import HarnessError

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
