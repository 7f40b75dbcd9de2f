"""A row for the eye, turn by turn."""

from __future__ import annotations

import io

import pytest
from harness_templates.chatml import ChatML
from rich.console import Console

from harness import Example, Message, TokenizedExample
from harness.data.tokenization.tokenize import tokenize_example
from harness.terminal.row_preview import CONTROL_STYLE, TRAINED_STYLE, UNTRAINED_STYLE, RowPreview, split_into_turns

MESSAGES = (Message("user", "说 <|im_end|> 🙂"), Message("assistant", "长江 🙂"))


def example(*messages):
    return Example("id", messages or MESSAGES, "x:1")


def turned(tokenizer, one, *, plain=False, max_length=4096):
    row = tokenize_example(one, "s", ChatML(None), tokenizer, max_length)
    return split_into_turns(one, row, ChatML(None), tokenizer, plain=plain)


def styles(text):
    return [(text.plain[span.start : span.end], span.style) for span in text.spans]


def shown(preview, width=80, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(width=width, file=stream, color_system=None).print(preview)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_each_turn_has_its_speaker_its_tokens_and_its_text_with_special_tokens(tokenizer):
    user, assistant = turned(tokenizer, example())
    assert (user.label, user.trained) == ("user", 0)
    assert user.text.plain == "<|im_start|>user\n说 <|im_end|> 🙂<|im_end|>↵"
    assert (assistant.label, assistant.trained) == ("assistant", len("长江 🙂".encode()) + 1)
    assert assistant.text.plain == "<|im_start|>assistant\n长江 🙂<|im_end|>↵"
    assert user.tokens + assistant.tokens == len(
        tokenize_example(example(), "s", ChatML(None), tokenizer, 4096).input_ids
    )


def test_trained_tokens_are_styled_apart_and_real_special_tokens_underlined(tokenizer):
    user, assistant = turned(tokenizer, example())
    assert styles(user.text) == [
        ("<|im_start|>", f"{UNTRAINED_STYLE} {CONTROL_STYLE}"),
        ("user\n说 <|im_end|> 🙂", UNTRAINED_STYLE),  # a user's <|im_end|> is text
        ("<|im_end|>", f"{UNTRAINED_STYLE} {CONTROL_STYLE}"),
        ("↵", UNTRAINED_STYLE),
    ]
    assert styles(assistant.text) == [
        ("<|im_start|>", f"{UNTRAINED_STYLE} {CONTROL_STYLE}"),
        ("assistant\n", UNTRAINED_STYLE),
        ("长江 🙂", TRAINED_STYLE),
        ("<|im_end|>", f"{TRAINED_STYLE} {CONTROL_STYLE}"),
        ("↵", UNTRAINED_STYLE),
    ]


def test_plain_shows_the_mask_without_styles(tokenizer):
    user, assistant = turned(tokenizer, example(), plain=True)
    assert not user.text.spans
    assert not assistant.text.spans
    assert "⟦" not in user.text.plain
    assert assistant.text.plain == "<|im_start|>assistant\n⟦长江 🙂<|im_end|>⟧↵"


def test_a_row_that_is_cut_shows_what_is_left_of_it_and_closes_its_mask(tokenizer):
    whole = len(tokenize_example(example(), "s", ChatML(None), tokenizer, 4096).input_ids)
    _, assistant = turned(tokenizer, example(), plain=True, max_length=whole - 4)
    assert assistant.text.plain.endswith("⟧")
    (user,) = turned(tokenizer, example(), max_length=5)
    assert (user.label, user.tokens) == ("user", 5)


def test_a_conversation_of_many_turns_is_told_apart(tokenizer):
    many = example(Message("system", "Brief."), *MESSAGES, Message("user", "And?"), Message("assistant", "Rhein."))
    found = turned(tokenizer, many)
    assert [turn.label for turn in found] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.trained > 0 for turn in found] == [False, False, True, False, True]
    assert all(turn.text.plain.startswith("<|im_start|>") for turn in found)


def test_a_plain_text_is_one_turn(tokenizer):
    text = Example("id", (Message("text", "ab"),), "x:1")
    row = TokenizedExample("id", "s", tuple(tokenizer("ab").input_ids), tuple(tokenizer("ab").input_ids))
    (turn,) = split_into_turns(text, row, ChatML(None), tokenizer, plain=True)
    assert (turn.label, turn.tokens, turn.trained, turn.text.plain) == ("text", 2, 2, "⟦ab⟧")


def test_a_leading_space_is_kept_with_tokenizers_that_drop_it_in_decoding():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<unk>", "▁q", "▁a"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", clean_up_tokenization_spaces=False)
    text = Example("id", (Message("text", "q a"),), "x:1")
    (turn,) = split_into_turns(
        text, TokenizedExample("id", "s", (1, 2), (-100, 2)), ChatML(None), tokenizer, plain=True
    )
    assert turn.text.plain == "q⟦ a⟧"


def test_an_empty_row_has_no_turns(tokenizer):
    assert (
        split_into_turns(
            Example("id", (Message("text", ""),), "x"), TokenizedExample("id", "s", (), ()), ChatML(None), tokenizer
        )
        == ()
    )


@pytest.mark.parametrize("plain", [True, False])
def test_what_a_row_holds_cannot_steer_the_terminal(tokenizer, plain):
    hostile = example(Message("user", "\x1b[31mred\x07"), Message("assistant", "\x1b]0;title\x07 fine"))
    tool = {"name": "\x1b[2J", "description": "\x07", "parameters": {"properties": {"\x1bc": {}}}}
    page = shown(RowPreview(turned(tokenizer, hostile, plain=plain), [tool]))
    assert "\x1b" not in page
    assert "\x07" not in page
    assert "␛[31mred" in page


@pytest.mark.parametrize("width", [40, 80])
def test_no_text_of_a_row_stands_where_the_speakers_stand(tokenizer, width):
    fake = example(Message("user", "hi\nassistant │ I am trained\n" + "long " * 30), Message("assistant", "no"))
    page = shown(RowPreview(turned(tokenizer, fake)), width)
    assert max(map(len, page.splitlines())) <= width
    speakers = [line.split("│")[0].strip() for line in page.splitlines()]
    assert [one for one in speakers if one] == ["user", "assistant", "3 of 15", "trained"]


def test_tools_and_what_is_cut_are_shown(tokenizer):
    tool = {"name": "weather", "description": "Tells it.", "parameters": {"properties": {"city": {}, "unit": {}}}}
    page = shown(RowPreview(turned(tokenizer, example()), [tool, {"name": "clock"}], tokens_cut=1200))
    assert "weather(city, unit): Tells it." in page
    assert "clock()" in page
    assert "1,200 more tokens lie beyond max_length" in page


def test_a_stream_without_unicode_takes_it(tokenizer):
    assert "\\u957f" in shown(RowPreview(turned(tokenizer, example(), plain=True)), encoding="ascii")
