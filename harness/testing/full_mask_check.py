"""The full check of a row's mask, as a function of one tokenized row."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from harness.data.tokenization.label_mask import MaskedTokens, encode_renderings, mask_encodings
from harness.data.tokenization.mask_verification import FullMaskCheck
from harness.data.tokenization.rendering import Interval, append_interval, render_training_text
from harness.interfaces.template import Template
from harness.types import IGNORE_INDEX, Example, TokenizedExample


def verify_mask(
    example: Example, row: TokenizedExample, template: Template, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Verify one tokenized row with the full check of every trained span.

    A truncated row must be a prefix of the untruncated row, which is verified in its place. White space is not
    compared, because some tokenizers do not preserve it.

    Args:
        example: The conversation or plain text.
        row: Its tokens and labels.
        template: The template that rendered the row.
        tokenizer: The tokenizer of the row.

    Raises:
        HarnessError: At the row's location, unless the row trains each response with its end of turn and nothing else.
    """
    full_check = FullMaskCheck(template, tokenizer)
    ids, labels = list(row.input_ids), row.labels
    if len(labels) != len(ids):
        raise full_check.mask_error(example, f"there are {len(labels)} labels for {len(ids)} tokens")
    if any(label not in (IGNORE_INDEX, token) for token, label in zip(ids, labels, strict=True)):
        raise full_check.mask_error(example, "a label differs from the token at its position")
    masked = MaskedTokens(ids, trained_label_spans(row))
    if row.tokens_cut:
        masked = tokenize_and_mask(example, template, tokenizer)
        length = len(ids)
        spans = [(begin, min(end, length)) for begin, end in masked.trained_spans if begin < length]
        if (masked.ids[:length], spans) != (ids, trained_label_spans(row)):
            raise full_check.mask_error(example, "the truncated row is not a prefix of the untruncated row")
    full_check.check_row(example, masked)


def trained_label_spans(row: TokenizedExample) -> list[Interval]:
    """Return the intervals of trained tokens, in order."""
    spans: list[Interval] = []
    for position, label in enumerate(row.labels):
        if label != IGNORE_INDEX:
            append_interval(spans, position, position + 1)
    return spans


def tokenize_and_mask(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> MaskedTokens:
    """Tokenize one row without truncation. Raises as `render_training_text` and `mask_encodings` do."""
    rendering = render_training_text(example, template, tokenizer)
    encodings = encode_renderings([rendering], tokenizer)
    return mask_encodings([example], [rendering], encodings, template, tokenizer)[0]
