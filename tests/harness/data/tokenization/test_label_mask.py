"""The mask: a token is trained if and only if it begins inside a trained span, with every kind of tokenizer."""

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
    tokenize_and_mask,
)
from harness.data.tokenization.rendering import Rendering, render_training_text
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def slowly(example, template, tokenizer):
    """Ids and labels by the definition, token by token, from the places of all of them."""
    rendering = render_training_text(example, template, tokenizer)
    ((ids, places),) = tokenize_with_offsets([rendering], tokenizer, [example.location])
    if not any(one in message.content for message in example.messages for one in tokenization_cases.CONTROL):
        assert ids == tokenizer(rendering.text, add_special_tokens=False).input_ids
    inside = [any(begin <= place < end for begin, end in rendering.trained_spans) for place, _ in places]
    labels = [token if trained else -100 for token, trained in zip(ids, inside, strict=True)]
    start = list(special_token_guard(tokenizer).bos_prefix)
    return (ids, labels) if ids[: len(start)] == start else ([*start, *ids], [-100] * len(start) + labels)


def labelled(row):
    labels = [-100] * len(row.ids)
    for begin, end in row.trained_spans:
        labels[begin:end] = row.ids[begin:end]
    return row.ids, labels


def quickly(examples, template, tokenizer):
    renderings = [render_training_text(example, template, tokenizer) for example in examples]
    return mask_encodings(examples, renderings, encode_renderings(renderings, tokenizer), template, tokenizer)


@pytest.mark.parametrize(
    "template", [tokenization_cases.Turns(), tokenization_cases.Speakers()], ids=lambda template: template.name
)
@pytest.mark.parametrize("kind", sorted(tokenization_cases.KINDS))
@many
@given(data=st.data())
def test_a_batch_is_masked_as_the_definition_says(kind, template, data):
    tokenizer = tokenization_cases.BUILT[kind]
    examples = data.draw(st.lists(tokenization_cases.conversations(), min_size=1, max_size=4))
    rows = quickly(examples, template, tokenizer)
    assert [labelled(row) for row in rows] == [slowly(example, template, tokenizer) for example in examples]
    assert rows == [tokenize_and_mask(example, template, tokenizer) for example in examples]


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_nfc", "legacy"])
@many
@given(data=st.data())
def test_hostile_rows_do_not_change_their_neighbours(kind, data):
    tokenizer, template = tokenization_cases.BUILT[kind], tokenization_cases.Turns()
    examples = data.draw(st.lists(tokenization_cases.conversations(tokenization_cases.hostile), min_size=1, max_size=4))
    rows = quickly(examples, template, tokenizer)
    assert [labelled(row) for row in rows] == [slowly(example, template, tokenizer) for example in examples]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for example, row in zip(examples, rows, strict=True):
        assert row.ids.count(end) == len(example.messages)


@pytest.mark.parametrize("kind", sorted(tokenization_cases.KINDS))
@many
@given(text=tokenization_cases.harmless, data=st.data())
def test_as_many_tokens_begin_before_a_place_as_their_places_say(kind, text, data):
    backend = tokenization_cases.BUILT[kind].backend_tokenizer
    encoding = backend.encode(text, add_special_tokens=False)
    place = data.draw(st.integers(0, len(text)))
    assert count_tokens_before(encoding, place, len(encoding)) == sum(begin < place for begin, _ in encoding.offsets)


class Placed:
    """Tokens at any places, as no tokenizer here has them: of no character, of the same, overlapping."""

    def __init__(self, offsets):
        self.token_to_chars = offsets.__getitem__
        self.char_to_token = lambda place: next((i for i, (a, b) in enumerate(offsets) if a <= place < b), None)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=9), st.integers(0, 14))
def test_tokens_of_no_character_and_overlapping_ones_are_counted(tokens, place):
    offsets = sorted((begin, begin + size) for begin, size in tokens)
    assert count_tokens_before(Placed(offsets), place, len(offsets)) == sum(begin < place for begin, _ in offsets)


def test_widths_are_known_for_byte_level_tokenizers_alone():
    known = {
        kind
        for kind, tokenizer in tokenization_cases.BUILT.items()
        if special_token_guard(tokenizer).byte_widths is not None
    }
    assert known == {"byte_level", "byte_level_begins", "byte_level_nfc", "byte_level_split"}


@pytest.mark.parametrize("change", ["prefix", "strip", "lower", "suffix"])
def test_widths_are_not_used_where_a_text_is_not_taken_over_byte_for_byte(change):
    from tokenizers import AddedToken, normalizers, pre_tokenizers

    backend = tokenization_cases.byte_level().backend_tokenizer
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


def test_rows_whose_tokens_do_not_add_up_are_masked_by_their_places():
    from tokenizers import Regex, pre_tokenizers

    # Line breaks are thrown away, so the tokens stand for fewer bytes than the text has.
    tokenizer = tokenization_cases.byte_level(split=pre_tokenizers.Split(Regex("\n"), behavior="removed"))
    examples = [tokenization_cases.row("a\nb", "c\nd"), tokenization_cases.row("長い\n河", "河\n\n長")]
    assert special_token_guard(tokenizer).byte_widths is not None
    rows = quickly(examples, tokenization_cases.Turns(), tokenizer)
    assert [labelled(row) for row in rows] == [
        slowly(example, tokenization_cases.Turns(), tokenizer) for example in examples
    ]
    assert [tokenizer.decode(rows[0].ids[begin:end]) for begin, end in rows[0].trained_spans] == ["cd<|im_end|>"]


def test_a_text_that_is_not_normal_is_masked_by_its_places():
    tokenizer = tokenization_cases.BUILT["byte_level_nfc"]
    # Composed, each of the first is shorter by a byte, and the other longer by three: together they seem to add up.
    example = tokenization_cases.row("e\u0301" * 3, "\u0958 river")
    # Control tokens before that place would give it away: they would stand beside their frames.
    template = tokenization_cases.Speakers()
    assert labelled(tokenize_and_mask(example, template, tokenizer)) == slowly(example, template, tokenizer)


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_begins", "legacy"])
def test_a_plain_text_is_trained_whole_but_for_its_first_token(kind):
    tokenizer = tokenization_cases.BUILT[kind]
    row = tokenize_and_mask(
        tokenization_cases.plain("The Elbe is long.<|im_end|>"), tokenization_cases.Turns(), tokenizer
    )
    assert row.trained_spans == [(1, len(row.ids))]
    assert row.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in row.ids
    begins = kind != "byte_level"
    assert (row.ids[0] == tokenizer.bos_token_id) is begins
    text = tokenizer.decode(row.ids[begins:-1], clean_up_tokenization_spaces=False)
    assert text == "The Elbe is long.<|im_end|>"


def test_a_plain_text_needs_text_an_end_and_a_row_of_its_own():
    import copy

    from harness import Example, Message

    tokenizer = tokenization_cases.byte_level()
    with pytest.raises(HarnessError, match=r"texts.jsonl:1: the text is empty"):
        tokenize_and_mask(tokenization_cases.plain(" \n"), tokenization_cases.Turns(), tokenizer)
    mixed = Example("0" * 16, (Message("text", "a"), Message("user", "b")), "texts.jsonl:2")
    with pytest.raises(HarnessError, match=r"texts.jsonl:2: a plain text stands with other messages"):
        tokenize_and_mask(mixed, tokenization_cases.Turns(), tokenizer)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(HarnessError, match=r"texts.jsonl:1: .*no end-of-sequence token"):
        tokenize_and_mask(tokenization_cases.plain("a"), tokenization_cases.Turns(), endless)


def test_tools_reach_a_template_that_takes_them_and_no_other():
    tokenizer = tokenization_cases.BUILT["byte_level"]
    assert "tools\n1" in render_training_text(tokenization_cases.called(), tokenization_cases.Turns(), tokenizer).text
    with pytest.raises(HarnessError, match=r"rows.jsonl:1: template speakers: the format has no place for tools"):
        render_training_text(tokenization_cases.called(), tokenization_cases.Speakers(), tokenizer)
    assert (
        render_training_text(tokenization_cases.row("q", "a"), tokenization_cases.Speakers(), tokenizer).text
        == "USER:\nq\nASSISTANT:\na</s>"
    )


def test_a_row_of_which_no_response_is_marked_is_refused_by_its_place():
    with pytest.raises(HarnessError, match=r"rows.jsonl:1: none of its responses is marked"):
        render_training_text(
            tokenization_cases.row("q", "a", untrained={1}),
            tokenization_cases.Turns(),
            tokenization_cases.BUILT["byte_level"],
        )


def test_a_response_of_white_space_is_refused_unless_it_calls_a_tool():
    tokenizer = tokenization_cases.BUILT["byte_level"]
    with pytest.raises(HarnessError, match="is empty"):
        render_training_text(tokenization_cases.row("q", " \n"), tokenization_cases.Turns(), tokenizer)
    assert len(tokenize_and_mask(tokenization_cases.called(), tokenization_cases.Turns(), tokenizer).trained_spans) == 2


def test_what_is_trained_but_holds_no_token_of_its_own_is_no_stretch():
    class Joined(Template):
        name = "joined"

        def render(self, messages, tokenizer, *, add_generation_prompt=False):
            return (Span("b:", markup=True), Span("\n", True), Span("x"), Span("a</s>", True, True))

    # WordPiece drops white space: the first trained span has no token.
    row = tokenize_and_mask(tokenization_cases.row("q", "a"), Joined(), tokenization_cases.BUILT["wordpiece"])
    assert len(row.trained_spans) == 1
    assert Rendering.from_spans(Joined().render((), None)).trained_spans == ((2, 3), (4, 9))
