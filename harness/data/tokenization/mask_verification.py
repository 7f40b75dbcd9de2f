"""Verify label masks: each response to train is trained with its end of turn, and nothing else is.

Verification does not use the spans that a mask was built from. It decodes the trained tokens and compares them with the
messages, for every row. To verify that a trained span begins where its prompt ends, the prompt must be rendered and
tokenized, which costs more. That full check is made for the first row of every conversation shape, for a sample of
rows, and for every row in which a span does not look exactly like one that has passed the full check.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from harness.data.tokenization.label_mask import MaskedTokens
from harness.data.tokenization.prompts import tokenize_prompt
from harness.data.tokenization.rendering import (
    Interval,
    Rendering,
    is_plain_text,
    template_name,
    trained_message_indices,
)
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SpanDecoder:
    """Decodes spans of tokens as they are written within a row.

    Many decoders drop the space at the beginning of a text. So each span is decoded behind a letter, which is removed
    afterwards.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._letter_ids = list(tokenizer("a", add_special_tokens=False).input_ids)
        self._letter = self._backend.decode(self._letter_ids, skip_special_tokens=False)
        self._normalizer = self._backend.normalizer

    def decode_spans(self, spans: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each span, with special tokens written out."""
        texts = self._backend.decode_batch([self._letter_ids + list(ids) for ids in spans], skip_special_tokens=False)
        return [
            text[len(self._letter) :] if text.startswith(self._letter) else self._backend.decode(list(ids), False)
            for text, ids in zip(texts, spans, strict=True)
        ]

    def decode_span(self, ids: Sequence[int]) -> str:
        """Return the text of one span."""
        return self.decode_spans([ids])[0]

    def normalize_text(self, text: str) -> str:
        """Return the text as its tokens are decoded, as far as the normalizer determines it, without white space."""
        return strip_all_whitespace(self._normalizer.normalize_str(text) if self._normalizer is not None else text)


def strip_all_whitespace(text: str) -> str:
    """Return the text without white space, and without the character `▁` that some tokenizers write for it."""
    return "".join(text.replace("▁", " ").split())


THINKING_BLOCK = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
THINKING_MARKERS = re.compile("(<think>)?</think>|<think>")
"""What a format writes around reasoning. A response may be a word in them."""

MASK_ERROR_HINT = "inspect the row with `harness preview`, and fix the template or choose another"


class FullMaskCheck:
    """The full check of rows of one template and tokenizer.

    Every method named `check_` raises HarnessError, at the row's location, when the row fails the check.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self.tokenizer, self.decoder = template, tokenizer, SpanDecoder(tokenizer)
        self.bos_prefix = special_token_guard(tokenizer).bos_prefix
        self._added_tokens = tokenizer.added_tokens_encoder
        self._bos_id, self._eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.stop_strings = tuple(stop for stop in template.stop_strings(tokenizer) if strip_all_whitespace(stop))
        self._end_ids = {
            self._eos_id,
            *(self._added_tokens[stop] for stop in self.stop_strings if stop in self._added_tokens),
        }

    def check_row(self, example: Example, row: MaskedTokens) -> None:
        """Check every trained span of a row, and its begin-of-sequence token."""
        if is_plain_text(example):
            self.check_plain_text(example, row)
        else:
            for span, index in zip(row.trained_spans, self.expected_messages(example, row), strict=True):
                self.check_prompt_untrained(example, row.ids, span[0], index)
                self.check_response_trained(example, row.ids, span, index)
        self.check_bos(example, row)

    def expected_messages(self, example: Example, row: MaskedTokens) -> list[int]:
        """Return the index of the message that each trained span of the row must contain."""
        indices = trained_message_indices(example)
        if len(indices) != len(row.trained_spans):
            what = f"there are {len(indices)} responses to train and {len(row.trained_spans)} trained spans"
            raise self.mask_error(example, what)
        return indices

    def check_prompt_untrained(self, example: Example, ids: Sequence[int], begin: int, index: int) -> None:
        """Check that no token before response `index` is trained. begin: where its trained span begins."""
        prefix, prompt_ids = tokenize_prompt(example, example.messages[:index], self.template, self.tokenizer)
        prompt = [*prefix, *prompt_ids]
        num_equal = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt))
        is_trained = begin < num_equal
        if num_equal < len(prompt):
            # A token may contain the prompt's last character and the response's first; it is before `begin` then.
            text_before, prompt_text = self.decoder.decode_span(ids[:begin]), self.decoder.decode_span(prompt)
            is_trained = is_trained or not strip_all_whitespace(text_before).startswith(
                strip_all_whitespace(prompt_text)
            )
        if is_trained:
            raise self.mask_error(example, f"a token before response {index + 1} is trained")

    def check_response_trained(self, example: Example, ids: Sequence[int], span: Interval, index: int) -> None:
        """Check that a trained span is response `index` with its reasoning, its tool calls and its end of turn."""
        message, span_ids = example.messages[index], ids[span[0] : span[1]]
        text = self.decoder.decode_span(span_ids)
        squeezed = strip_all_whitespace(text)
        position, parts = 0, [(message.reasoning or "", "reasoning"), (message.content, "text")]
        block = THINKING_BLOCK.match(message.content)
        if block is not None and not squeezed.startswith("<think>"):
            # The template opens the block in its header, and the response begins with the reasoning.
            parts = [(block[1], "reasoning"), (message.content[block.end() :], "text")]
        for text_of, part in parts:
            ((part_ids, _),) = tokenize_with_offsets(
                [Rendering.of_content(text_of)], self.tokenizer, [example.location]
            )
            expected = strip_all_whitespace(self.decoder.decode_span(part_ids))
            markers = THINKING_MARKERS.match(squeezed, position)
            if markers is not None and not squeezed.startswith(expected, position):
                position = markers.end()
            found = squeezed.find(expected, position)
            if found < 0:
                raise self.mask_error(example, f"the trained tokens do not contain the {part} of response {index + 1}")
            position = found + len(expected)
        rest = squeezed[position:]
        if message.tool_calls:
            calls = self._strip_stop_strings(rest)
            self._check_tool_calls(example, calls, message, index)
            rest = rest[len(calls) :]
        has_ended = False
        while stop := next((stop for stop in self.stop_strings if rest.startswith(strip_all_whitespace(stop))), None):
            rest = rest[len(strip_all_whitespace(stop)) :]
            has_ended = has_ended or stop not in self._added_tokens or self._added_tokens[stop] in span_ids
        if not has_ended:
            raise self.mask_error(example, f"the end of turn after response {index + 1} is not trained")
        if not rest and not text.endswith(tuple(self.stop_strings)):
            rest = text[len(text.rstrip()) :]
        if rest:
            raise self.mask_error(example, f"text after the end of response {index + 1} is trained: {rest[:40]!r}")

    def check_plain_text(self, example: Example, row: MaskedTokens) -> None:
        """Check that a plain text and the end-of-sequence token are trained, except the first token."""
        num_prefix_tokens = len(self.bos_prefix)
        if row.trained_spans != [(max(num_prefix_tokens, 1), len(row.ids))]:
            raise self.mask_error(example, "not all of the text is trained")
        end, content = str(self.tokenizer.eos_token), example.messages[0].content
        if row.ids[-1] != self._eos_id:
            raise self.mask_error(example, "the end of the text is not trained")
        text, squeezed_end = self.decoder.decode_span(row.ids[num_prefix_tokens:]), strip_all_whitespace(end)
        squeezed = strip_all_whitespace(text)
        if text == content + end or squeezed == self.decoder.normalize_text(content) + squeezed_end:
            return
        ((ids, _),) = tokenize_with_offsets([Rendering.of_content(content)], self.tokenizer, [example.location])
        if squeezed != strip_all_whitespace(self.decoder.decode_span(ids)) + squeezed_end:
            raise self.mask_error(example, "the tokens are not those of the text")

    def check_bos(self, example: Example, row: MaskedTokens) -> None:
        """Check that the begin-of-sequence token is first where the tokenizer adds it, and never twice in a row.

        Later in a row, a format may open its turns with that token. Where the tokenizer adds it itself, it may only
        follow the end of a turn.
        """
        ids, bos_id = row.ids, self._bos_id
        if ids[: len(self.bos_prefix)] != list(self.bos_prefix):
            raise self.mask_error(example, "the row does not begin with the tokenizer's begin-of-sequence token")
        if bos_id is None or ids.count(bos_id) < 2:
            return
        position = ids.index(bos_id)
        for _ in range(ids.count(bos_id) - 1):
            previous, position = position, ids.index(bos_id, position + 1)
            # Where one token serves as begin and end, the first of a pair ends a turn, unless it opens the row.
            is_doubled = position == previous + 1 and (bos_id != self._eos_id or previous == 0)
            if is_doubled or (bos_id in self.bos_prefix and ids[position - 1] not in self._end_ids):
                what = f"token {position + 1} is a second begin-of-sequence token ({self.tokenizer.bos_token})"
                raise self.mask_error(example, what)

    def mask_error(self, example: Example, what: str) -> HarnessError:
        """Return the error of a row whose mask is wrong."""
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
        names = [Rendering.of_content(call.name) for call in message.tool_calls]
        encoded = tokenize_with_offsets(names, self.tokenizer, [example.location] * len(names))
        if not contains_in_order(text, [strip_all_whitespace(self.decoder.decode_span(ids)) for ids, _ in encoded]):
            raise self.mask_error(example, f"the trained tokens do not contain the calls of response {index + 1}")


def contains_in_order(text: str, words: Sequence[str]) -> bool:
    """Return whether a text without white space contains the words one after the other.

    Of tool calls, only the names are searched for: each format writes the arguments in its own way.
    """
    position = 0
    for word in words:
        match = text.find(word, position)
        if match < 0:
            return False
        position = match + len(word)
    return True


FULL_CHECK_INTERVAL = 1000
"""One row in this many gets the full check regardless of its spans; chosen by a hash of its id."""

CONTEXT_TOKENS = 4
"""Tokens before a span that must be equal for spans to match. The context ends at the last control token."""

MAX_NEW_CONTEXTS = 64
"""Number of new contexts after which one token fewer is compared: the format writes fewer tokens than that."""

_SpanSignature = tuple[str, str, int]
"""White space before a response in its span, the text after the response, and the last token."""


class MaskVerifier:
    r"""Verifies rows of one template and tokenizer.

    A span needs no full check when it matches one that has passed it::

        ... <|im_start|> assistant \n | Hello there <|im_end|> | \n ...
            [------ context -------]   [lead][content][ tail  ]
                                       [---- trained span ----]

    Attributes:
        rows_verified: Number of rows verified.
        rows_fully_checked: Number of those that got the full check.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.rows_verified = self.rows_fully_checked = 0
        self._full_check = FullMaskCheck(template, tokenizer)
        self._possible_controls = special_token_guard(tokenizer).possible_controls
        self._shapes: set[object] = set()
        self._signatures: dict[_SpanSignature, None] = {}
        self._contexts: set[tuple[int, ...]] = set()
        self._context_tokens, self._new_contexts = CONTEXT_TOKENS, 0

    def verify_rows(self, examples: Sequence[Example], rows: Sequence[MaskedTokens]) -> None:
        """Verify untruncated rows.

        Raises:
            HarnessError: For the first row whose mask is wrong.
        """
        span_texts = iter(
            self._full_check.decoder.decode_spans(
                [row.ids[begin:end] for row in rows for begin, end in row.trained_spans]
            )
        )
        for example, row in zip(examples, rows, strict=True):
            texts = [next(span_texts) for _ in row.trained_spans]
            if is_plain_text(example):
                self._full_check.check_plain_text(example, row)
            else:
                self._verify_conversation(example, row, texts)
            self._full_check.check_bos(example, row)
            self.rows_verified += 1

    def _verify_conversation(self, example: Example, row: MaskedTokens, texts: Sequence[str]) -> None:
        indices = self._full_check.expected_messages(example, row)
        shape = _conversation_shape(example)
        if shape in self._shapes and zlib.crc32(example.id.encode()) % FULL_CHECK_INTERVAL:
            messages = [example.messages[index] for index in indices]
            if all(map(self._matches_verified, messages, texts, [row.ids] * len(texts), row.trained_spans)):
                return
        self.rows_fully_checked += 1
        for span, index, text in zip(row.trained_spans, indices, texts, strict=True):
            self._full_check.check_prompt_untrained(example, row.ids, span[0], index)
            self._full_check.check_response_trained(example, row.ids, span, index)
            self._remember_span(example.messages[index], text, row.ids, span)
        self._shapes.add(shape)

    def _matches_verified(self, message: Message, text: str, ids: list[int], span: Interval) -> bool:
        """Return whether a span equals a verified one in everything but its response."""
        begin, end = span
        last = ids[end - 1]
        if message.reasoning is not None or self._context_of(ids, begin) not in self._contexts:
            return False
        if last < len(self._possible_controls) and self._possible_controls[last] and ids[begin:end].count(last) != 1:
            return False  # a turn that ends within the span
        content = message.content
        for lead, tail, last_token in self._signatures:
            if last_token != last or not text.endswith(tail):
                continue
            if message.tool_calls:
                calls = text[len(lead) + len(content) : len(text) - len(tail)]
                names = [strip_all_whitespace(call.name) for call in message.tool_calls]
                matches = text.startswith(lead + content) and contains_in_order(strip_all_whitespace(calls), names)
            else:
                matches = text == f"{lead}{content}{tail}" or self._matches_normalized(content, text, lead, tail)
            if matches:
                return True
        return False

    def _matches_normalized(self, content: str, text: str, lead: str, tail: str) -> bool:
        """Return whether the text is the content as stripped by the template or normalized by the tokenizer.

        Leading white space of the content may be partly missing: a token may join it to the header.
        """
        core = content.strip()
        if core != content:
            leading, trailing = content[: len(content) - len(content.lstrip())], content[len(content.rstrip()) :]
            before, match, after = text[: len(text) - len(tail)].partition(core)
            if (
                match
                and trailing.startswith(after)
                and before.startswith(lead)
                and leading.endswith(before[len(lead) :])
            ):
                return True
        has_lead = text[: len(text) - len(text.lstrip())] == lead
        expected = self._full_check.decoder.normalize_text(content) + strip_all_whitespace(tail)
        return has_lead and strip_all_whitespace(text) == expected

    def _remember_span(self, message: Message, text: str, ids: list[int], span: Interval) -> None:
        """Store the context and the signature of a span that has passed the full check."""
        context = self._context_of(ids, span[0])
        if context not in self._contexts:
            self._contexts.add(context)
            self._new_contexts += 1
        if self._new_contexts == MAX_NEW_CONTEXTS and self._context_tokens > 1:
            self._context_tokens, self._new_contexts = self._context_tokens - 1, 0
            self._contexts = {known[-self._context_tokens :] for known in self._contexts}
        if message.tool_calls or message.reasoning is not None or message.content != message.content.strip():
            return
        lead, match, tail = text.partition(message.content)
        if lead.strip() and match:
            return
        if not match:  # the tokenizer normalizes the content
            lead = text[: len(text) - len(text.lstrip())]
            squeezed_tail = strip_all_whitespace(text)[len(self._full_check.decoder.normalize_text(message.content)) :]
            stops = (stop for stop in self._full_check.stop_strings if strip_all_whitespace(stop) == squeezed_tail)
            tail = next(stops, "")
        if tail:
            self._signatures[lead, tail, ids[span[1] - 1]] = None

    def _context_of(self, ids: list[int], begin: int) -> tuple[int, ...]:
        """Return the tokens right before a span, back to the last control token, `_context_tokens` at most."""
        first = begin
        while first > 0 and begin - first < self._context_tokens:
            first -= 1
            if ids[first] < len(self._possible_controls) and self._possible_controls[ids[first]]:
                break
        return tuple(ids[first:begin])


def _conversation_shape(example: Example) -> object:
    """Return everything about a conversation by which a template may choose another code path."""
    return (
        bool(example.tools),
        *(
            (m.role, not m.content or m.content.isspace(), not m.input, bool(m.tool_calls), m.train, m.name is None)
            for m in example.messages
        ),
    )
