"""Verification of a corpus: correct masks of every tokenizer pass cheaply, and a wrong mask anywhere is found."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tokenization_cases

from harness import HarnessError, Span
from harness.data.tokenization import mask_verification
from harness.data.tokenization.label_mask import MaskedTokens
from harness.data.tokenization.mask_verification import MaskVerifier
from harness.testing.full_mask_check import tokenize_and_mask

NUM_ROWS = 80
hypothesis_settings = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def build_corpus(count=NUM_ROWS):
    return [
        tokenization_cases.build_conversation(f"Question {n}?", f"Answer {n}.", f"More {n}?", f"Well, {n}.", number=n)
        for n in range(1, count + 1)
    ]


def verify(examples, template, tokenizer, change=lambda example, row: row):
    verifier = MaskVerifier(template, tokenizer)
    rows = [change(example, tokenize_and_mask(example, template, tokenizer)) for example in examples]
    verifier.verify_rows(examples[:8], rows[:8])
    verifier.verify_rows(examples[8:], rows[8:])
    assert verifier.rows_verified == len(examples)
    return verifier


@pytest.mark.parametrize(
    "template", [tokenization_cases.Turns(), tokenization_cases.Speakers()], ids=lambda template: template.name
)
@pytest.mark.parametrize("tokenizer_name", sorted(tokenization_cases.TOKENIZER_FACTORIES))
def test_similar_rows_need_no_full_check(tokenizer_name, template):
    # Speakers' names are shorter than the compared context, where no control token ends it.
    assert verify(build_corpus(), template, tokenization_cases.TOKENIZERS[tokenizer_name]).rows_fully_checked <= (
        4 if template.name == "turns" else 40
    )


@pytest.mark.parametrize("tokenizer_name", sorted(tokenization_cases.TOKENIZER_FACTORIES))
@hypothesis_settings
@given(data=st.data())
def test_correct_masks_pass_for_any_characters(tokenizer_name, data):
    tokenizer, template = tokenization_cases.TOKENIZERS[tokenizer_name], tokenization_cases.Turns()
    examples = data.draw(
        st.lists(
            tokenization_cases.conversations(
                tokenization_cases.hostile_texts
                if tokenizer_name == "byte_level"
                else tokenization_cases.harmless_texts
            ),
            min_size=1,
        )
    )
    assert verify(examples, template, tokenizer).rows_verified == len(examples)


def test_rows_with_outer_white_space_need_no_full_check_in_byte_level_tokens():
    examples = [
        tokenization_cases.build_conversation(f" Question {n}? ", f"\n Answer {n}.\n\n", number=n)
        for n in range(1, NUM_ROWS)
    ]
    assert (
        verify(
            [*build_corpus(8), *examples], tokenization_cases.Turns(), tokenization_cases.TOKENIZERS["byte_level"]
        ).rows_fully_checked
        <= 6
    )


def test_tool_calls_and_plain_texts_are_verified():
    examples = [
        example
        for n in range(1, 30)
        for example in (
            tokenization_cases.build_tool_conversation(n),
            tokenization_cases.build_plain_text(f"A text {n}.", n),
            *build_corpus(1),
        )
    ]
    for tokenizer_name in ("byte_level", "byte_level_begins", "legacy"):
        assert (
            verify(
                examples, tokenization_cases.Turns(), tokenization_cases.TOKENIZERS[tokenizer_name]
            ).rows_fully_checked
            <= 6
        )


def test_a_sample_and_the_first_row_of_every_shape_get_the_full_check(monkeypatch):
    shapes = [
        *build_corpus(20),
        *(tokenization_cases.build_conversation("q", "a", number=n) for n in range(20)),
        *(tokenization_cases.build_tool_conversation(n) for n in range(20)),
    ]
    monkeypatch.setattr(mask_verification, "FULL_CHECK_INTERVAL", 10**9)
    assert (
        verify(shapes, tokenization_cases.Turns(), tokenization_cases.TOKENIZERS["byte_level"]).rows_fully_checked == 3
    )
    monkeypatch.setattr(mask_verification, "FULL_CHECK_INTERVAL", 1)
    assert verify(
        shapes, tokenization_cases.Turns(), tokenization_cases.TOKENIZERS["byte_level"]
    ).rows_fully_checked == len(shapes)


def test_context_shrinks_for_a_format_without_headers():
    class TemplateWithoutHeaders(tokenization_cases.Turns):
        name = "bare"

        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            spans = []
            for message in messages:
                trained = message.role == "assistant"
                spans += [Span(message.content + ("" if trained else "\n"), trained)]
                spans += [Span("<|im_end|>", True, markup=True)] * trained
            return spans

    examples = [
        tokenization_cases.build_conversation(f"{'abcdefgh'[n % 8]}{'ABCDEFGHI'[n % 9]}{n}{n}{n}?", f"A {n}", number=n)
        for n in range(400)
    ]
    assert (
        verify(examples, TemplateWithoutHeaders(), tokenization_cases.TOKENIZERS["byte_level"]).rows_fully_checked < 300
    )


# -- wrong masks ------------------------------------------------------------------------------------------------------


class ChangedTurns(tokenization_cases.Turns):
    """Turns with the spans of each turn passed through `change`, for turns whose content contains `text`."""

    name = "changed"

    def __init__(self, change, text=""):
        self.change, self.text = change, text

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
        turns, changed = len(spans) // 4, []
        for number in range(turns):
            turn = list(spans[4 * number : 4 * number + 4])
            is_changed = self.text in turn[1].text
            changed += self.change(messages[number], *turn) if is_changed else turn
        return (*changed, *spans[4 * turns :])


def set_train(span, value=True):
    return dataclasses.replace(span, train=value)


def change_responses(change):
    return lambda message, *turn: change(*turn) if message.role == "assistant" else list(turn)


def change_prompts(change):
    return lambda message, *turn: change(*turn) if message.role == "user" else list(turn)


WRONG = {
    "the header is trained": (change_responses(lambda h, c, e, b: [set_train(h), c, e, b]), "before response"),
    "the header's last character is trained": (
        change_responses(lambda h, c, e, b: [Span(h.text[:-1], markup=True), Span("\n", True, markup=True), c, e, b]),
        "before response",
    ),
    "the end of turn is left out": (change_responses(lambda h, c, e, b: [h, c, set_train(e, False), b]), "end of turn"),
    "the end of turn alone is trained": (
        change_responses(lambda h, c, e, b: [h, set_train(c, False), e, b]),
        "do not contain the text",
    ),
    "the line break after it is trained": (
        change_responses(lambda h, c, e, b: [h, c, e, set_train(b)]),
        r"after the end of response \d is trained",
    ),
    "the first character is not trained": (
        change_responses(lambda h, c, e, b: [h, Span(c.text[:1]), Span(c.text[1:], True), e, b]),
        "do not contain the text",
    ),
    "a word in the middle is not trained": (
        change_responses(
            lambda h, c, e, b: [h, Span(c.text[:2], True), Span(c.text[2:5]), Span(c.text[5:], True), e, b]
        ),
        "trained spans",
    ),
    "the user's turn is trained": (
        change_prompts(lambda h, c, e, b: [h, set_train(c), set_train(e), b]),
        "trained spans",
    ),
    "the user's turn is trained and the response is not": (
        lambda message, h, c, e, b: [h, set_train(c, not c.train), set_train(e, not e.train), b],
        "before response|do not contain the text",
    ),
    "the end of turn is plain text": (
        change_responses(lambda h, c, e, b: [h, c, dataclasses.replace(e, markup=False), b]),
        "end of turn|trained spans",
    ),
    "the turn ends twice within": (
        change_responses(lambda h, c, e, b: [h, c, e, Span("more", True), e, b]),
        "after the end of response",
    ),
    "nothing is trained but the first response": (
        lambda message, h, c, e, b: (
            [h, c, e, b] if message.content.startswith("Answer") else [h, set_train(c, False), set_train(e, False), b]
        ),
        "2 responses to train and 1 trained spans",
    ),
}


@pytest.mark.parametrize("where", ["everywhere", "in one late row"])
@pytest.mark.parametrize("tokenizer_name", ["byte_level", "byte_level_begins", "legacy", "unigram"])
@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_wrong_mask_is_found(wrong, tokenizer_name, where):
    change, what = WRONG[wrong]
    late = " 71" if where == "in one late row" else ""
    template = ChangedTurns(change, late)
    with pytest.raises(HarnessError, match=what) as error:
        verify(build_corpus(), template, tokenization_cases.TOKENIZERS[tokenizer_name])
    assert error.value.where == f"rows.jsonl:{71 if late else 1}"
    assert "the mask of the template changed is wrong" in error.value.what


def test_unchanged_template_is_verified():
    assert (
        verify(
            build_corpus(), ChangedTurns(lambda message, *turn: list(turn)), tokenization_cases.TOKENIZERS["byte_level"]
        ).rows_fully_checked
        <= 2
    )


def test_template_that_ignores_the_train_flag_is_found():
    class Ignores(tokenization_cases.Turns):
        name = "ignores"

        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            messages = [dataclasses.replace(message, train=True) for message in messages]
            return super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)

    examples = [*build_corpus(), tokenization_cases.build_conversation("q", "a", "q", "a", number=99, untrained={1})]
    verify(examples, tokenization_cases.Turns(), tokenization_cases.TOKENIZERS["byte_level"])
    with pytest.raises(HarnessError, match=r"rows.jsonl:99: .*template ignores.* 1 responses to train and 2 trained"):
        verify(examples, Ignores(), tokenization_cases.TOKENIZERS["byte_level"])


@pytest.mark.parametrize("tokenizer_name", ["byte_level", "byte_level_begins", "legacy"])
def test_second_bos_token_is_found(tokenizer_name):
    class Twice(tokenization_cases.Turns):
        name = "twice"

        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            return (
                Span("<s><s>", markup=True),
                *super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt),
            )

    class Once(tokenization_cases.Turns):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            return (
                Span("<s>", markup=True),
                *super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt),
            )

    verify(build_corpus(), Once(), tokenization_cases.TOKENIZERS[tokenizer_name])
    with pytest.raises(HarnessError, match=r"rows.jsonl:1: .*token 2 is a second begin-of-sequence token \(<s>\)"):
        verify(build_corpus(), Twice(), tokenization_cases.TOKENIZERS[tokenizer_name])


def test_bos_token_within_a_turn_is_found_where_the_tokenizer_adds_it():
    class Within(tokenization_cases.Turns):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            return (
                Span("<|im_start|>", markup=True),
                Span("<s>", markup=True),
                *super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt),
            )

    with pytest.raises(HarnessError, match="second begin-of-sequence"):
        verify(build_corpus(), Within(), tokenization_cases.TOKENIZERS["byte_level_begins"])


def test_turn_may_begin_with_the_bos_token_after_an_end_of_turn():
    class Each(tokenization_cases.Turns):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
            return [
                Span("<s>" + s.text.strip("\n"), s.train, True) if "start|>user" in s.text else s
                for s in spans
                if s.text != "\n"
            ]

    assert verify(build_corpus(), Each(), tokenization_cases.TOKENIZERS["byte_level_begins"]).rows_verified == NUM_ROWS


def move_first_span(begin, end):
    def change(example, row):
        if example.location != "rows.jsonl:70":
            return row
        (first, last), *rest = row.trained_spans
        return MaskedTokens(row.ids, [(first + begin, last + end), *rest])

    return change


@pytest.mark.parametrize("tokenizer_name", sorted(tokenization_cases.TOKENIZER_FACTORIES))
@pytest.mark.parametrize(("begin", "end"), [(-1, 0), (-2, 0), (0, -1), (0, 1), (1, 0), (1, 1), (-1, -1)])
def test_one_token_too_many_or_too_few_is_found(tokenizer_name, begin, end):
    # The header ends with a line break, which some tokenizers drop: then the token before is a word of it.
    with pytest.raises(HarnessError, match=r"rows.jsonl:70: the mask of the template turns is wrong"):
        verify(
            build_corpus(),
            tokenization_cases.Turns(),
            tokenization_cases.TOKENIZERS[tokenizer_name],
            move_first_span(begin, end),
        )


def test_users_turn_with_the_same_text_is_not_accepted_as_the_response():
    examples = [tokenization_cases.build_conversation("Yes.", "Yes.", number=n) for n in range(1, NUM_ROWS + 1)]

    def change(example, row):
        if example.location != "rows.jsonl:70":
            return row
        (begin, end), *_ = row.trained_spans
        size = end - begin
        position = next(i for i in range(len(row.ids)) if row.ids[i : i + size] == row.ids[begin:end])
        assert position < begin
        return MaskedTokens(row.ids, [(position, position + size)])

    with pytest.raises(HarnessError, match=r"rows.jsonl:70: .*before response"):
        verify(examples, tokenization_cases.Turns(), tokenization_cases.TOKENIZERS["byte_level"], change)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda row: MaskedTokens(row.ids, [(0, len(row.ids))]), "not all of the text"),
        (lambda row: MaskedTokens(row.ids, [(1, len(row.ids) - 1)]), "not all of the text"),
        (lambda row: MaskedTokens(row.ids[:-1], [(1, len(row.ids) - 1)]), "the end of the text is not trained"),
        (lambda row: MaskedTokens([*row.ids[:2], *row.ids[3:]], [(1, len(row.ids) - 1)]), "not those of the text"),
    ],
)
def test_partly_trained_plain_text_is_found(change, what):
    examples = [tokenization_cases.build_plain_text(f"The Elbe is {n} long.", n) for n in range(1, 20)]
    with pytest.raises(HarnessError, match=what) as error:
        verify(
            examples,
            tokenization_cases.Turns(),
            tokenization_cases.TOKENIZERS["byte_level"],
            lambda e, row: change(row) if e is examples[15] else row,
        )
    assert error.value.where == "texts.jsonl:16"


def test_untrained_tool_calls_are_found():
    def without(message, *turn):
        return [turn[0], dataclasses.replace(turn[1], text=turn[1].text.replace("depth", "width")), *turn[2:]]

    example = dataclasses.replace(tokenization_cases.build_tool_conversation(2), tools=())
    with pytest.raises(HarnessError, match="do not contain the calls of response 2"):
        verify([example], ChangedTurns(without), tokenization_cases.TOKENIZERS["byte_level"])
