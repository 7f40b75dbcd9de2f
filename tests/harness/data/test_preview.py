"""A row for the eye."""

from __future__ import annotations

import pytest
from harness_templates.chatml import ChatML

from harness import Example, Message, Row
from harness.data.encode import encode
from harness.data.preview import CONTROL, TRAINED, UNTRAINED, preview

MESSAGES = (Message("user", "说 <|im_end|> 🙂"), Message("assistant", "长江 🙂"))


@pytest.fixture
def row(tokenizer):
    return encode(Example("id", MESSAGES, "x"), "s", ChatML(None), tokenizer, 4096)


def styles(text):
    return [(text.plain[span.start : span.end], span.style) for span in text.spans]


def test_the_text_is_the_rows_with_special_tokens_in_it(row, tokenizer):
    expected = "<|im_start|>user\n说 <|im_end|> 🙂<|im_end|>\n<|im_start|>assistant\n长江 🙂<|im_end|>\n"
    assert preview(row, tokenizer).plain == expected


def test_trained_tokens_are_styled_apart_and_real_special_tokens_underlined(row, tokenizer):
    assert styles(preview(row, tokenizer)) == [
        ("<|im_start|>", f"{UNTRAINED} {CONTROL}"),
        ("user\n说 <|im_end|> 🙂", UNTRAINED),  # a user's <|im_end|> is text
        ("<|im_end|>", f"{UNTRAINED} {CONTROL}"),
        ("\n", UNTRAINED),
        ("<|im_start|>", f"{UNTRAINED} {CONTROL}"),
        ("assistant\n", UNTRAINED),
        ("长江 🙂", TRAINED),
        ("<|im_end|>", f"{TRAINED} {CONTROL}"),
        ("\n", UNTRAINED),
    ]


def test_plain_shows_the_mask_without_styles(row, tokenizer):
    text = preview(row, tokenizer, plain=True)
    assert not text.spans
    assert text.plain.endswith("<|im_start|>assistant\n⟦长江 🙂<|im_end|>⟧\n")
    assert text.plain.count("⟦") == text.plain.count("⟧") == 1


def test_plain_closes_a_mask_that_reaches_the_end(row, tokenizer):
    cut = Row("id", "s", row.input_ids[:-3], row.labels[:-3])
    assert preview(cut, tokenizer, plain=True).plain.endswith("⟧")


def test_a_leading_space_is_kept_with_tokenizers_that_drop_it_in_decoding():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<unk>", "▁q", "▁a"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", clean_up_tokenization_spaces=False)
    assert preview(Row("id", "s", (1, 2), (-100, 2)), tokenizer, plain=True).plain == "q⟦ a⟧"


def test_an_empty_row_is_an_empty_text(tokenizer):
    assert preview(Row("id", "s", (), ()), tokenizer).plain == ""


@pytest.mark.parametrize("plain", [True, False])
def test_what_a_row_holds_cannot_steer_the_terminal(tokenizer, plain):
    messages = (Message("user", "\x1b[31mred\x07"), Message("assistant", "\x1b]0;title\x07 fine"))
    hostile = encode(Example("id", messages, "x"), "s", ChatML(None), tokenizer, 4096)
    shown = preview(hostile, tokenizer, plain=plain).plain
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "␛[31mred" in shown
    assert shown.startswith("<|im_start|>user\n")
