"""The mask: a token is trained if and only if it begins inside a trained span, for every type of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tokenization_cases

from harness import HarnessError, Span, Template
from harness.data.tokenization.byte_level import ByteWidths
from harness.data.tokenization.label_mask import (
    count_tokens_before,
    encode_renderings,
    mask_encodings,
)
from harness.data.tokenization.rendering import Rendering, render_training_text
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets
from harness.testing.full_mask_check import tokenize_and_mask

hypothesis_settings = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def mask_by_definition(example, template, tokenizer):
    """Return ids and labels by the definition, token by token, from the offsets of all tokens."""
    rendering = render_training_text(example, template, tokenizer)
    ((ids, offsets),) = tokenize_with_offsets([rendering], tokenizer, [example.location])
    if not any(token in message.content for message in example.messages for token in tokenization_cases.CONTROL_TOKENS):
        assert ids == tokenizer(rendering.text, add_special_tokens=False).input_ids
    is_trained = [any(begin <= position < end for begin, end in rendering.trained_spans) for position, _ in offsets]
    labels = [token if trained else -100 for token, trained in zip(ids, is_trained, strict=True)]
    start = list(special_token_guard(tokenizer).bos_prefix)
    return (ids, labels) if ids[: len(start)] == start else ([*start, *ids], [-100] * len(start) + labels)


def ids_and_labels(row):
    labels = [-100] * len(row.ids)
    for begin, end in row.trained_spans:
        labels[begin:end] = row.ids[begin:end]
    return row.ids, labels


def mask_batch(examples, template, tokenizer):
    renderings = [render_training_text(example, template, tokenizer) for example in examples]
    return mask_encodings(examples, renderings, encode_renderings(renderings, tokenizer), template, tokenizer)


@pytest.mark.parametrize(
    "template", [tokenization_cases.Turns(), tokenization_cases.Speakers()], ids=lambda template: template.name
)
@pytest.mark.parametrize("tokenizer_name", sorted(tokenization_cases.TOKENIZER_FACTORIES))
@hypothesis_settings
@given(data=st.data())
def test_batch_mask_equals_the_definition(tokenizer_name, template, data):
    tokenizer = tokenization_cases.TOKENIZERS[tokenizer_name]
    examples = data.draw(st.lists(tokenization_cases.conversations(), min_size=1, max_size=4))
    rows = mask_batch(examples, template, tokenizer)
    assert [ids_and_labels(row) for row in rows] == [
        mask_by_definition(example, template, tokenizer) for example in examples
    ]
    assert rows == [tokenize_and_mask(example, template, tokenizer) for example in examples]


@pytest.mark.parametrize("tokenizer_name", ["byte_level", "byte_level_nfc", "legacy"])
@hypothesis_settings
@given(data=st.data())
def test_control_tokens_in_a_row_do_not_change_other_rows(tokenizer_name, data):
    tokenizer, template = tokenization_cases.TOKENIZERS[tokenizer_name], tokenization_cases.Turns()
    examples = data.draw(
        st.lists(tokenization_cases.conversations(tokenization_cases.hostile_texts), min_size=1, max_size=4)
    )
    rows = mask_batch(examples, template, tokenizer)
    assert [ids_and_labels(row) for row in rows] == [
        mask_by_definition(example, template, tokenizer) for example in examples
    ]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for example, row in zip(examples, rows, strict=True):
        assert row.ids.count(end) == len(example.messages)


@pytest.mark.parametrize("tokenizer_name", sorted(tokenization_cases.TOKENIZER_FACTORIES))
@hypothesis_settings
@given(text=tokenization_cases.harmless_texts, data=st.data())
def test_count_tokens_before_equals_a_count_of_offsets(tokenizer_name, text, data):
    backend = tokenization_cases.TOKENIZERS[tokenizer_name].backend_tokenizer
    encoding = backend.encode(text, add_special_tokens=False)
    position = data.draw(st.integers(0, len(text)))
    assert count_tokens_before(encoding, position, len(encoding)) == sum(
        begin < position for begin, _ in encoding.offsets
    )


class FakeEncoding:
    """Tokens with any offsets, also those that no tokenizer here produces: empty, equal, overlapping."""

    def __init__(self, offsets):
        self.token_to_chars = offsets.__getitem__
        self.char_to_token = lambda position: next((i for i, (a, b) in enumerate(offsets) if a <= position < b), None)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=9), st.integers(0, 14))
def test_empty_and_overlapping_tokens_are_counted(tokens, position):
    offsets = sorted((begin, begin + size) for begin, size in tokens)
    assert count_tokens_before(FakeEncoding(offsets), position, len(offsets)) == sum(
        begin < position for begin, _ in offsets
    )


def test_byte_widths_exist_for_byte_level_tokenizers_only():
    with_widths = {
        tokenizer_name
        for tokenizer_name, tokenizer in tokenization_cases.TOKENIZERS.items()
        if special_token_guard(tokenizer).byte_widths is not None
    }
    assert with_widths == {"byte_level", "byte_level_begins", "byte_level_nfc", "byte_level_split"}


@pytest.mark.parametrize("change", ["prefix", "strip", "lower", "suffix"])
def test_byte_widths_are_not_used_where_tokens_differ_from_bytes(change):
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    backend = tokenization_cases.build_byte_level().backend_tokenizer
    assert ByteWidths.from_tokenizer(backend) is not None
    if change == "prefix":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "strip":
        backend.add_special_tokens([AddedToken("<end>", rstrip=True)])
    elif change == "lower":
        backend.normalizer = normalizers.Lowercase()
    else:
        model = backend.model
        model.end_of_word_suffix = "</w>"
        backend.model = model
    assert ByteWidths.from_tokenizer(backend) is None


def test_rows_whose_widths_do_not_add_up_are_masked_by_offsets():
    from tokenizers import Regex, pre_tokenizers

    # Line breaks are removed, so the tokens stand for fewer bytes than the text has.
    tokenizer = tokenization_cases.build_byte_level(split=pre_tokenizers.Split(Regex("\n"), behavior="removed"))
    examples = [
        tokenization_cases.build_conversation("a\nb", "c\nd"),
        tokenization_cases.build_conversation("長い\n河", "河\n\n長"),
    ]
    assert special_token_guard(tokenizer).byte_widths is not None
    rows = mask_batch(examples, tokenization_cases.Turns(), tokenizer)
    assert [ids_and_labels(row) for row in rows] == [
        mask_by_definition(example, tokenization_cases.Turns(), tokenizer) for example in examples
    ]
    assert [tokenizer.decode(rows[0].ids[begin:end]) for begin, end in rows[0].trained_spans] == ["cd<|im_end|>"]


def test_unnormalized_text_is_masked_by_offsets():
    tokenizer = tokenization_cases.TOKENIZERS["byte_level_nfc"]
    # In NFC, each of the first is a byte shorter and the other three bytes longer: together they seem to add up.
    example = tokenization_cases.build_conversation("e\u0301" * 3, "\u0958 river")
    # Control tokens before that position would reveal the difference: they would be outside of the markup.
    template = tokenization_cases.Speakers()
    assert ids_and_labels(tokenize_and_mask(example, template, tokenizer)) == mask_by_definition(
        example, template, tokenizer
    )


@pytest.mark.parametrize("tokenizer_name", ["byte_level", "byte_level_begins", "legacy"])
def test_plain_text_is_trained_except_its_first_token(tokenizer_name):
    tokenizer = tokenization_cases.TOKENIZERS[tokenizer_name]
    row = tokenize_and_mask(
        tokenization_cases.build_plain_text("The Elbe is long.<|im_end|>"), tokenization_cases.Turns(), tokenizer
    )
    assert row.trained_spans == [(1, len(row.ids))]
    assert row.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in row.ids
    has_bos = tokenizer_name != "byte_level"
    assert (row.ids[0] == tokenizer.bos_token_id) is has_bos
    text = tokenizer.decode(row.ids[has_bos:-1], clean_up_tokenization_spaces=False)
    assert text == "The Elbe is long.<|im_end|>"


def test_plain_text_needs_text_an_eos_token_and_its_own_row():
    import copy

    from harness import Example, Message

    tokenizer = tokenization_cases.build_byte_level()
    with pytest.raises(HarnessError, match=r"texts.jsonl:1: the text is empty"):
        tokenize_and_mask(tokenization_cases.build_plain_text(" \n"), tokenization_cases.Turns(), tokenizer)
    text_and_more = Example("0" * 16, (Message("text", "a"), Message("user", "b")), "texts.jsonl:2")
    with pytest.raises(HarnessError, match=r"texts.jsonl:2: a plain text has other messages"):
        tokenize_and_mask(text_and_more, tokenization_cases.Turns(), tokenizer)
    without_eos = copy.deepcopy(tokenizer)
    without_eos.eos_token = None
    with pytest.raises(HarnessError, match=r"texts.jsonl:1: .*no end-of-sequence token"):
        tokenize_and_mask(tokenization_cases.build_plain_text("a"), tokenization_cases.Turns(), without_eos)


def test_tools_are_passed_only_to_templates_that_accept_them():
    tokenizer = tokenization_cases.TOKENIZERS["byte_level"]
    assert (
        "tools\n1"
        in render_training_text(
            tokenization_cases.build_tool_conversation(), tokenization_cases.Turns(), tokenizer
        ).text
    )
    with pytest.raises(HarnessError, match=r"rows.jsonl:1: template speakers: the format does not support tools"):
        render_training_text(tokenization_cases.build_tool_conversation(), tokenization_cases.Speakers(), tokenizer)
    assert (
        render_training_text(
            tokenization_cases.build_conversation("q", "a"), tokenization_cases.Speakers(), tokenizer
        ).text
        == "USER:\nq\nASSISTANT:\na</s>"
    )


def test_row_without_a_response_to_train_is_an_error_at_its_location():
    with pytest.raises(HarnessError, match=r"rows.jsonl:1: none of its responses is marked for training"):
        render_training_text(
            tokenization_cases.build_conversation("q", "a", untrained={1}),
            tokenization_cases.Turns(),
            tokenization_cases.TOKENIZERS["byte_level"],
        )


def test_blank_response_is_refused_unless_it_calls_a_tool():
    tokenizer = tokenization_cases.TOKENIZERS["byte_level"]
    with pytest.raises(HarnessError, match="is empty"):
        render_training_text(tokenization_cases.build_conversation("q", " \n"), tokenization_cases.Turns(), tokenizer)
    assert (
        len(
            tokenize_and_mask(
                tokenization_cases.build_tool_conversation(), tokenization_cases.Turns(), tokenizer
            ).trained_spans
        )
        == 2
    )


def test_trained_text_without_a_token_gives_no_span():
    class JoinedTemplate(Template):
        name = "joined"

        def render(self, messages, tokenizer, *, add_generation_prompt=False):
            return (Span("b:", markup=True), Span("\n", True), Span("x"), Span("a</s>", True, True))

    # WordPiece drops white space: the first trained span has no token.
    row = tokenize_and_mask(
        tokenization_cases.build_conversation("q", "a"), JoinedTemplate(), tokenization_cases.TOKENIZERS["wordpiece"]
    )
    assert len(row.trained_spans) == 1
    assert Rendering.from_spans(JoinedTemplate().render((), None)).trained_spans == ((2, 3), (4, 9))
