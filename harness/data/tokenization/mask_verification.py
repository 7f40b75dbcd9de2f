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

from harness.data.tokenization.label_mask import MaskedTokens, TokenSpan, tokenize_and_mask
from harness.data.tokenization.prompts import tokenize_prompt
from harness.data.tokenization.rendering import Rendering, is_plain_text, template_name, trained_message_indices
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Message, TokenizedExample

if TYPE_CHECKING:
    from harness.data.tokenization.label_mask import EncodedExample


class SpanDecoder:
    """Decodes stretches of tokens as they stand within a row.

    Many decoders drop the space that a text begins with, so each stretch is decoded behind a letter, taken off then.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._anchor = list(tokenizer("a", add_special_tokens=False).input_ids)
        self._before = self._backend.decode(self._anchor, skip_special_tokens=False)
        self._normalizer = self._backend.normalizer

    def decode_spans(self, spans: Sequence[Sequence[int]]) -> list[str]:
        """The text of each stretch, special tokens written out."""
        anchor, before = self._anchor, self._before
        texts = self._backend.decode_batch([anchor + list(ids) for ids in spans], skip_special_tokens=False)
        return [
            text[len(before) :] if text.startswith(before) else self._backend.decode(list(ids), False)
            for text, ids in zip(texts, spans, strict=True)
        ]

    def decode_span(self, ids: Sequence[int]) -> str:
        """The text of one stretch."""
        return self.decode_spans([ids])[0]

    def normalize_text(self, text: str) -> str:
        """A text as its tokens will be decoded, as far as the tokenizer's normaliser tells, squashed."""
        return strip_all_whitespace(self._normalizer.normalize_str(text) if self._normalizer is not None else text)


def strip_all_whitespace(text: str) -> str:
    """The text without white space, and without the sign that some tokenizers write for it."""
    return "".join(text.replace("▁", " ").split())


MASK_ERROR_HINT = "look at the row with `harness preview`, and mend the template or choose another"


class FullMaskCheck:
    """Proofs of rows of one template and tokenizer. Each raises HarnessError, with the row's place, when it fails."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self.tokenizer, self.decoder = template, tokenizer, SpanDecoder(tokenizer)
        self._added_tokens = tokenizer.added_tokens_encoder
        self._bos_id, self._eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.stop_strings = tuple(stop for stop in template.stop_strings(tokenizer) if strip_all_whitespace(stop))
        self._end_ids = {
            self._eos_id,
            *(self._added_tokens[stop] for stop in self.stop_strings if stop in self._added_tokens),
        }

    def expected_messages(self, example: Example, row: MaskedTokens) -> list[int]:
        """The messages that the row's trained stretches must be of, one for each."""
        wanted = trained_message_indices(example)
        if len(wanted) != len(row.trained_spans):
            what = f"there are {len(wanted)} responses to train and {len(row.trained_spans)} trained stretches"
            raise self.mask_error(example, what)
        return wanted

    def check_prompt_untrained(self, example: Example, ids: Sequence[int], begin: int, index: int) -> None:
        """No token of what precedes response `index` is trained. begin: where its stretch begins."""
        start, rest = tokenize_prompt(example, example.messages[:index], self.template, self.tokenizer)
        prompt = [*start, *rest]
        same = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        inside = begin < same
        if same < len(prompt):
            # A token may take in the prompt's last character and the response's first; it stands before `begin` then.
            before, whole = self.decoder.decode_span(ids[:begin]), self.decoder.decode_span(prompt)
            inside = inside or not strip_all_whitespace(before).startswith(strip_all_whitespace(whole))
        if inside:
            raise self.mask_error(example, f"a token of what precedes response {index + 1} is trained")

    def check_response_trained(self, example: Example, ids: Sequence[int], span: TokenSpan, index: int) -> None:
        """The stretch holds response `index`, its calls, its end of turn, and nothing else."""
        message, within = example.messages[index], ids[span[0] : span[1]]
        text = self.decoder.decode_span(within)
        whole = strip_all_whitespace(text)
        content = Rendering(message.content, (), (), ())
        ((content_ids, _),) = tokenize_with_offsets([content], self.tokenizer, [example.location])
        expected = strip_all_whitespace(self.decoder.decode_span(content_ids))
        place = whole.find(expected)
        if place < 0:
            raise self.mask_error(example, f"the trained tokens do not hold the text of response {index + 1}")
        rest = whole[place + len(expected) :]
        if message.tool_calls:
            calls = self._strip_stop_strings(rest)
            self._check_tool_calls(example, calls, message, index)
            rest = rest[len(calls) :]
        ended = False
        while stop := next((stop for stop in self.stop_strings if rest.startswith(strip_all_whitespace(stop))), None):
            rest = rest[len(strip_all_whitespace(stop)) :]
            ended = ended or stop not in self._added_tokens or self._added_tokens[stop] in within
        if not ended:
            raise self.mask_error(example, f"the end of turn after response {index + 1} is not trained")
        if not rest and not text.endswith(tuple(self.stop_strings)):
            rest = text[len(text.rstrip()) :]
        if rest:
            raise self.mask_error(example, f"text after the end of response {index + 1} is trained: {rest[:40]!r}")

    def check_plain_text(self, example: Example, row: MaskedTokens, num_prefix_tokens: int) -> None:
        """A plain text and the end-of-sequence token are trained, except its first token. start: tokens put first."""
        if row.trained_spans != [(max(num_prefix_tokens, 1), len(row.ids))]:
            raise self.mask_error(example, "not all of the text is trained")
        end, content = str(self.tokenizer.eos_token), example.messages[0].content
        if row.ids[-1] != self._eos_id:
            raise self.mask_error(example, "the end of the text is not trained")
        text = self.decoder.decode_span(row.ids[num_prefix_tokens:])
        if text == content + end or strip_all_whitespace(text) == self.decoder.normalize_text(
            content
        ) + strip_all_whitespace(end):
            return
        ((ids, _),) = tokenize_with_offsets([Rendering(content, (), (), ())], self.tokenizer, [example.location])
        if strip_all_whitespace(text) != strip_all_whitespace(self.decoder.decode_span(ids)) + strip_all_whitespace(
            end
        ):
            raise self.mask_error(example, "the tokens are not those of the text")

    def check_bos(self, example: Example, row: MaskedTokens, bos_prefix: Sequence[int]) -> None:
        """The begin-of-sequence token stands first where the tokenizer puts it, and never twice in a row.

        Elsewhere a format may open its turns with it; where the tokenizer puts it, only after the end of a turn.
        """
        ids, mark = row.ids, self._bos_id
        if ids[: len(bos_prefix)] != list(bos_prefix):
            raise self.mask_error(example, "it does not begin as the tokenizer begins a text")
        if mark is None or ids.count(mark) < 2:
            return
        place = ids.index(mark)
        for _ in range(ids.count(mark) - 1):
            last, place = place, ids.index(mark, place + 1)
            # Where one token does for both, the first of a pair ends a turn, unless it opens the row.
            twice = place == last + 1 and (mark != self._eos_id or last == 0)
            if twice or (mark in bos_prefix and ids[place - 1] not in self._end_ids):
                what = f"a second begin-of-sequence token ({self.tokenizer.bos_token}) stands at token {place + 1}"
                raise self.mask_error(example, what)

    def mask_error(self, example: Example, what: str) -> HarnessError:
        """The error of a row whose mask is wrong."""
        return HarnessError(
            example.location,
            f"the mask of the template {template_name(self.template)} is wrong: {what}",
            MASK_ERROR_HINT,
        )

    def _strip_stop_strings(self, text: str) -> str:
        while stop := next((stop for stop in self.stop_strings if text.endswith(strip_all_whitespace(stop))), None):
            text = text[: -len(strip_all_whitespace(stop))]
        return text

    def _check_tool_calls(self, example: Example, text: str, message: Message, index: int) -> None:
        names = [Rendering(call.name, (), (), ()) for call in message.tool_calls]
        found = tokenize_with_offsets(names, self.tokenizer, [example.location] * len(names))
        if not contains_in_order(text, [strip_all_whitespace(self.decoder.decode_span(ids)) for ids, _ in found]):
            raise self.mask_error(example, f"the trained tokens do not hold the calls of response {index + 1}")


def contains_in_order(text: str, words: Sequence[str]) -> bool:
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


FULL_CHECK_INTERVAL = 1000
"""One row in so many is proven thoroughly whatever it looks like; chosen by its id."""

CONTEXT_TOKENS = 4
"""Tokens in front of a stretch that must be the same for it to look alike; the last control token is the farthest."""

MAX_NEW_CONTEXTS = 64
"""New looks of these tokens after which one fewer is compared: the format writes fewer of them than that."""

SpanSignature = tuple[str, str, int]
"""White space before a response in its stretch, what stands after it, and the last token."""


class MaskVerifier:
    """Proves the rows of one template and tokenizer. proven: rows so far. thorough: those done thoroughly."""

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.rows_verified = self.rows_fully_checked = 0
        self._full_check = FullMaskCheck(template, tokenizer)
        self._bos_prefix = special_token_guard(tokenizer).bos_prefix
        self._possible_controls = special_token_guard(tokenizer).possible_controls
        self._shapes: set[object] = set()
        self._signatures: dict[SpanSignature, None] = {}
        self._contexts: set[tuple[int, ...]] = set()
        self._context_tokens, self._new_contexts = CONTEXT_TOKENS, 0

    def verify_rows(self, examples: Sequence[Example], rows: Sequence[MaskedTokens]) -> None:
        """Prove these rows, which are whole. Raises HarnessError for the first one that is not proven."""
        decoded = iter(
            self._full_check.decoder.decode_spans([row.ids[a:b] for row in rows for a, b in row.trained_spans])
        )
        for example, row in zip(examples, rows, strict=True):
            texts = [next(decoded) for _ in row.trained_spans]
            if is_plain_text(example):
                self._full_check.check_plain_text(example, row, len(self._bos_prefix))
            else:
                self._verify_conversation(example, row, texts)
            self._full_check.check_bos(example, row, self._bos_prefix)
            self.rows_verified += 1

    def _verify_conversation(self, example: Example, row: MaskedTokens, texts: Sequence[str]) -> None:
        wanted = self._full_check.expected_messages(example, row)
        shape = _conversation_shape(example)
        if shape in self._shapes and zlib.crc32(example.id.encode()) % FULL_CHECK_INTERVAL:
            messages = [example.messages[index] for index in wanted]
            if all(map(self._matches_verified, messages, texts, [row.ids] * len(texts), row.trained_spans)):
                return
        self.rows_fully_checked += 1
        for (begin, end), index, text in zip(row.trained_spans, wanted, texts, strict=True):
            self._full_check.check_prompt_untrained(example, row.ids, begin, index)
            self._full_check.check_response_trained(example, row.ids, (begin, end), index)
            self._remember_span(example.messages[index], text, row.ids, (begin, end))
        self._shapes.add(shape)

    def _matches_verified(self, message: Message, text: str, ids: list[int], span: TokenSpan) -> bool:
        """Whether the stretch looks like one that has been proven, but for the response in it."""
        begin, end = span
        last = ids[end - 1]
        if self._context_of(ids, begin) not in self._contexts:
            return False
        if last < len(self._possible_controls) and self._possible_controls[last] and ids[begin:end].count(last) != 1:
            return False  # a turn that ends within the stretch
        content = message.content
        for lead, tail, ending in self._signatures:
            if ending != last or not text.endswith(tail):
                continue
            if message.tool_calls:
                middle = text[len(lead) + len(content) : len(text) - len(tail)]
                names = [strip_all_whitespace(call.name) for call in message.tool_calls]
                alike = text.startswith(lead + content) and contains_in_order(strip_all_whitespace(middle), names)
            else:
                alike = text == f"{lead}{content}{tail}" or self._matches_normalized(content, text, lead, tail)
            if alike:
                return True
        return False

    def _matches_normalized(self, content: str, text: str, leading_space: str, tail: str) -> bool:
        """Whether the text is the content, stripped by the template or normalised by the tokenizer.

        White space that it begins with may be missing in part: a token may join it to the header.
        """
        core = content.strip()
        if core != content:
            begin, end = content[: len(content) - len(content.lstrip())], content[len(content.rstrip()) :]
            before, found, after = text[: len(text) - len(tail)].partition(core)
            if (
                found
                and end.startswith(after)
                and before.startswith(leading_space)
                and begin.endswith(before[len(leading_space) :])
            ):
                return True
        begins = text[: len(text) - len(text.lstrip())] == leading_space
        return begins and strip_all_whitespace(text) == self._full_check.decoder.normalize_text(
            content
        ) + strip_all_whitespace(tail)

    def _remember_span(self, message: Message, text: str, ids: list[int], span: TokenSpan) -> None:
        head = self._context_of(ids, span[0])
        if head not in self._contexts:
            self._contexts.add(head)
            self._new_contexts += 1
        if self._new_contexts == MAX_NEW_CONTEXTS and self._context_tokens > 1:
            self._context_tokens, self._new_contexts = self._context_tokens - 1, 0
            self._contexts = {known[-self._context_tokens :] for known in self._contexts}
        if message.tool_calls or message.content != message.content.strip():
            return
        lead, found, tail = text.partition(message.content)
        if lead.strip() and found:
            return
        if not found:  # the tokenizer writes it otherwise
            lead = text[: len(text) - len(text.lstrip())]
            ending = strip_all_whitespace(text)[len(self._full_check.decoder.normalize_text(message.content)) :]
            tail = next((stop for stop in self._full_check.stop_strings if strip_all_whitespace(stop) == ending), "")
        if tail:
            self._signatures[lead, tail, ids[span[1] - 1]] = None

    def _context_of(self, ids: list[int], begin: int) -> tuple[int, ...]:
        """What stands right before a stretch: up to the last control token, a few tokens at most."""
        at = begin
        while at > 0 and begin - at < self._context_tokens:
            at -= 1
            if ids[at] < len(self._possible_controls) and self._possible_controls[ids[at]]:
                break
        return tuple(ids[at:begin])


def verify_mask(
    example: Example, encoded: EncodedExample, template: Template, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise HarnessError, with the row's place, unless the row trains each response and its end of turn, and no header.

    Every trained stretch is proven thoroughly. A truncated row must be the beginning of the whole row, which is proven
    in its stead. White space is not compared: some tokenizers do not keep it.
    """
    row, thorough = encoded.row, FullMaskCheck(template, tokenizer)
    if len(row.labels) != len(row.input_ids):
        raise thorough.mask_error(example, f"there are {len(row.labels)} labels for {len(row.input_ids)} tokens")
    if any(label not in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True)):
        raise thorough.mask_error(example, "a label is another token than the one that it stands at")
    whole = MaskedTokens(list(row.input_ids), trained_label_spans(row))
    if encoded.tokens_cut:
        length = len(row.input_ids)
        whole = tokenize_and_mask(example, template, tokenizer)
        cut = [(begin, min(end, length)) for begin, end in whole.trained_spans if begin < length]
        if (whole.ids[:length], cut) != (list(row.input_ids), trained_label_spans(row)):
            raise thorough.mask_error(example, "the truncated row is not the beginning of the whole one")
    start = special_token_guard(tokenizer).bos_prefix
    if is_plain_text(example):
        thorough.check_plain_text(example, whole, len(start))
    else:
        for run, index in zip(whole.trained_spans, thorough.expected_messages(example, whole), strict=True):
            thorough.check_prompt_untrained(example, whole.ids, run[0], index)
            thorough.check_response_trained(example, whole.ids, run, index)
    thorough.check_bos(example, whole, start)


def trained_label_spans(row: TokenizedExample) -> list[TokenSpan]:
    """The stretches of trained tokens, (begin, end), in order."""
    runs: list[TokenSpan] = []
    for place, label in enumerate(row.labels):
        if label == -100:
            continue
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _conversation_shape(example: Example) -> object:
    """What tells conversations apart that a template may render along other paths."""
    return (
        bool(example.tools),
        *(
            (m.role, not m.content or m.content.isspace(), not m.input, bool(m.tool_calls), m.train, m.name is None)
            for m in example.messages
        ),
    )
