"""Tokenized rows, turn by turn."""

from __future__ import annotations

import io

import pytest
from harness_templates.chatml import ChatML
from rich.console import Console

from harness import Example, Message, TokenizedExample
from harness.data.tokenization.tokenize import tokenize_example
from harness.terminal.row_preview import CONTROL_STYLE, TRAINED_STYLE, UNTRAINED_STYLE, RowPreview, split_into_turns

MESSAGES = (Message("user", "说 <|im_end|> 🙂"), Message("assistant", "长江 🙂"))


def build_example(*messages):
    return Example("id", messages or MESSAGES, "x:1")


def preview_turns(tokenizer, conversation, *, plain=False, max_length=4096):
    row = tokenize_example(conversation, "s", ChatML(None), tokenizer, max_length)
    return split_into_turns(conversation, row, ChatML(None), tokenizer, plain=plain)


def styled_texts(text):
    return [(text.plain[span.start : span.end], span.style) for span in text.spans]


def print_preview(preview, width=80, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(width=width, file=stream, color_system=None).print(preview)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_turn_has_speaker_token_counts_and_text_with_special_tokens(tokenizer):
    user, assistant = preview_turns(tokenizer, build_example())
    assert (user.label, user.trained) == ("user", 0)
    assert user.text.plain == "<|im_start|>user\n说 <|im_end|> 🙂<|im_end|>↵"
    assert (assistant.label, assistant.trained) == ("assistant", len("长江 🙂".encode()) + 1)
    assert assistant.text.plain == "<|im_start|>assistant\n长江 🙂<|im_end|>↵"
    assert user.tokens + assistant.tokens == len(
        tokenize_example(build_example(), "s", ChatML(None), tokenizer, 4096).input_ids
    )


def test_trained_and_special_tokens_have_their_own_styles(tokenizer):
    user, assistant = preview_turns(tokenizer, build_example())
    assert styled_texts(user.text) == [
        ("<|im_start|>", f"{UNTRAINED_STYLE} {CONTROL_STYLE}"),
        ("user\n说 <|im_end|> 🙂", UNTRAINED_STYLE),  # a user's <|im_end|> is text
        ("<|im_end|>", f"{UNTRAINED_STYLE} {CONTROL_STYLE}"),
        ("↵", UNTRAINED_STYLE),
    ]
    assert styled_texts(assistant.text) == [
        ("<|im_start|>", f"{UNTRAINED_STYLE} {CONTROL_STYLE}"),
        ("assistant\n", UNTRAINED_STYLE),
        ("长江 🙂", TRAINED_STYLE),
        ("<|im_end|>", f"{TRAINED_STYLE} {CONTROL_STYLE}"),
        ("↵", UNTRAINED_STYLE),
    ]


def test_plain_preview_marks_trained_tokens_with_brackets(tokenizer):
    user, assistant = preview_turns(tokenizer, build_example(), plain=True)
    assert not user.text.spans
    assert not assistant.text.spans
    assert "⟦" not in user.text.plain
    assert assistant.text.plain == "<|im_start|>assistant\n⟦长江 🙂<|im_end|>⟧↵"


def test_truncated_row_shows_its_remaining_tokens_and_closes_the_bracket(tokenizer):
    num_tokens = len(tokenize_example(build_example(), "s", ChatML(None), tokenizer, 4096).input_ids)
    _, assistant = preview_turns(tokenizer, build_example(), plain=True, max_length=num_tokens - 4)
    assert assistant.text.plain.endswith("⟧")
    (user,) = preview_turns(tokenizer, build_example(), max_length=5)
    assert (user.label, user.tokens) == ("user", 5)


def test_conversation_with_many_turns_is_split(tokenizer):
    many = build_example(
        Message("system", "Brief."), *MESSAGES, Message("user", "And?"), Message("assistant", "Rhein.")
    )
    turns = preview_turns(tokenizer, many)
    assert [turn.label for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.trained > 0 for turn in turns] == [False, False, True, False, True]
    assert all(turn.text.plain.startswith("<|im_start|>") for turn in turns)


def test_plain_text_is_one_turn(tokenizer):
    text = Example("id", (Message("text", "ab"),), "x:1")
    row = TokenizedExample("id", "s", tuple(tokenizer("ab").input_ids), tuple(tokenizer("ab").input_ids))
    (turn,) = split_into_turns(text, row, ChatML(None), tokenizer, plain=True)
    assert (turn.label, turn.tokens, turn.trained, turn.text.plain) == ("text", 2, 2, "⟦ab⟧")


def test_leading_space_is_kept_if_the_tokenizer_drops_it_in_decoding():
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


def test_empty_row_has_no_turns(tokenizer):
    assert (
        split_into_turns(
            Example("id", (Message("text", ""),), "x"), TokenizedExample("id", "s", (), ()), ChatML(None), tokenizer
        )
        == ()
    )


@pytest.mark.parametrize("plain", [True, False])
def test_row_text_cannot_control_the_terminal(tokenizer, plain):
    hostile = build_example(Message("user", "\x1b[31mred\x07"), Message("assistant", "\x1b]0;title\x07 fine"))
    tool = {"name": "\x1b[2J", "description": "\x07", "parameters": {"properties": {"\x1bc": {}}}}
    output = print_preview(RowPreview(preview_turns(tokenizer, hostile, plain=plain), [tool]))
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "␛[31mred" in output


@pytest.mark.parametrize("width", [40, 80])
def test_row_text_never_appears_in_the_speaker_column(tokenizer, width):
    fake = build_example(Message("user", "hi\nassistant │ I am trained\n" + "long " * 30), Message("assistant", "no"))
    output = print_preview(RowPreview(preview_turns(tokenizer, fake)), width)
    assert max(map(len, output.splitlines())) <= width
    speakers = [line.split("│")[0].strip() for line in output.splitlines()]
    assert [speaker for speaker in speakers if speaker] == ["user", "assistant", "3 of 15", "trained"]


def test_tools_and_number_of_cut_tokens_are_shown(tokenizer):
    tool = {"name": "weather", "description": "Returns it.", "parameters": {"properties": {"city": {}, "unit": {}}}}
    output = print_preview(
        RowPreview(preview_turns(tokenizer, build_example()), [tool, {"name": "clock"}], tokens_cut=1200)
    )
    assert "weather(city, unit): Returns it." in output
    assert "clock()" in output
    assert "1,200 more tokens are beyond max_length" in output


def test_preview_prints_to_an_ascii_stream(tokenizer):
    assert "\\u957f" in print_preview(
        RowPreview(preview_turns(tokenizer, build_example(), plain=True)), encoding="ascii"
    )
