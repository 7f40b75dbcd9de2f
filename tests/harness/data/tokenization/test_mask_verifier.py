"""The proof of every row: right masks of every kind of tokenizer pass, cheaply, and a wrong one anywhere is found."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tokenization_cases

from harness import HarnessError, Span
from harness.data.tokenization import mask_verification
from harness.data.tokenization.label_mask import MaskedTokens, tokenize_and_mask
from harness.data.tokenization.mask_verification import MaskVerifier

LONG = 80
many = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def corpus(count=LONG):
    return [
        tokenization_cases.row(f"Question {n}?", f"Answer {n}.", f"More {n}?", f"Well, {n}.", number=n)
        for n in range(1, count + 1)
    ]


def proven(examples, template, tokenizer, change=lambda example, row: row):
    prover = MaskVerifier(template, tokenizer)
    rows = [change(example, tokenize_and_mask(example, template, tokenizer)) for example in examples]
    prover.verify_rows(examples[:8], rows[:8])
    prover.verify_rows(examples[8:], rows[8:])
    assert prover.rows_verified == len(examples)
    return prover


@pytest.mark.parametrize(
    "template", [tokenization_cases.Turns(), tokenization_cases.Speakers()], ids=lambda template: template.name
)
@pytest.mark.parametrize("kind", sorted(tokenization_cases.KINDS))
def test_rows_alike_are_proven_without_rendering_their_prompts(kind, template):
    # Speakers' names are shorter than what is compared of the tokens before a response, where no control token ends it.
    assert proven(corpus(), template, tokenization_cases.BUILT[kind]).rows_fully_checked <= (
        4 if template.name == "turns" else 40
    )


@pytest.mark.parametrize("kind", sorted(tokenization_cases.KINDS))
@many
@given(data=st.data())
def test_right_masks_pass_whatever_white_space_and_characters_they_hold(kind, data):
    tokenizer, template = tokenization_cases.BUILT[kind], tokenization_cases.Turns()
    examples = data.draw(
        st.lists(
            tokenization_cases.conversations(
                tokenization_cases.hostile if kind == "byte_level" else tokenization_cases.harmless
            ),
            min_size=1,
        )
    )
    assert proven(examples, template, tokenizer).rows_verified == len(examples)


def test_rows_with_white_space_at_their_ends_are_alike_in_byte_level_tokens():
    examples = [tokenization_cases.row(f" Question {n}? ", f"\n Answer {n}.\n\n", number=n) for n in range(1, LONG)]
    assert (
        proven(
            [*corpus(8), *examples], tokenization_cases.Turns(), tokenization_cases.BUILT["byte_level"]
        ).rows_fully_checked
        <= 6
    )


def test_calls_tools_and_plain_texts_are_proven():
    examples = [
        one
        for n in range(1, 30)
        for one in (tokenization_cases.called(n), tokenization_cases.plain(f"A text {n}.", n), *corpus(1))
    ]
    for kind in ("byte_level", "byte_level_begins", "legacy"):
        assert proven(examples, tokenization_cases.Turns(), tokenization_cases.BUILT[kind]).rows_fully_checked <= 6


def test_a_sample_and_the_first_row_of_every_shape_are_proven_thoroughly(monkeypatch):
    shapes = [
        *corpus(20),
        *(tokenization_cases.row("q", "a", number=n) for n in range(20)),
        *(tokenization_cases.called(n) for n in range(20)),
    ]
    monkeypatch.setattr(mask_verification, "FULL_CHECK_INTERVAL", 10**9)
    assert proven(shapes, tokenization_cases.Turns(), tokenization_cases.BUILT["byte_level"]).rows_fully_checked == 3
    monkeypatch.setattr(mask_verification, "FULL_CHECK_INTERVAL", 1)
    assert proven(shapes, tokenization_cases.Turns(), tokenization_cases.BUILT["byte_level"]).rows_fully_checked == len(
        shapes
    )


def test_a_format_without_headers_is_compared_less_and_less_far_back():
    class Bare(tokenization_cases.Turns):
        name = "bare"

        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            spans = []
            for message in messages:
                trained = message.role == "assistant"
                spans += [Span(message.content + ("" if trained else "\n"), trained)]
                spans += [Span("<|im_end|>", True, markup=True)] * trained
            return spans

    examples = [
        tokenization_cases.row(f"{'abcdefgh'[n % 8]}{'ABCDEFGHI'[n % 9]}{n}{n}{n}?", f"A {n}", number=n)
        for n in range(400)
    ]
    assert proven(examples, Bare(), tokenization_cases.BUILT["byte_level"]).rows_fully_checked < 300


# -- wrong masks ------------------------------------------------------------------------------------------------------


class Wrong(tokenization_cases.Turns):
    """Turns, with the spans of each turn passed through `change`; only of turns that hold `what` in their content."""

    name = "wrong"

    def __init__(self, change, what=""):
        self.change, self.what = change, what

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
        turns, found = len(spans) // 4, []
        for number in range(turns):
            turn = list(spans[4 * number : 4 * number + 4])
            hit = self.what in turn[1].text
            found += self.change(messages[number], *turn) if hit else turn
        return (*found, *spans[4 * turns :])


def trained(span, value=True):
    return dataclasses.replace(span, train=value)


def responses(change):
    return lambda message, *turn: change(*turn) if message.role == "assistant" else list(turn)


def prompts(change):
    return lambda message, *turn: change(*turn) if message.role == "user" else list(turn)


WRONG = {
    "the header is trained": (responses(lambda h, c, e, b: [trained(h), c, e, b]), "precedes response"),
    "the header's last character is trained": (
        responses(lambda h, c, e, b: [Span(h.text[:-1], markup=True), Span("\n", True, markup=True), c, e, b]),
        "precedes response",
    ),
    "the end of turn is left out": (responses(lambda h, c, e, b: [h, c, trained(e, False), b]), "end of turn"),
    "the end of turn alone is trained": (
        responses(lambda h, c, e, b: [h, trained(c, False), e, b]),
        "do not hold the text",
    ),
    "the line break after it is trained": (
        responses(lambda h, c, e, b: [h, c, e, trained(b)]),
        r"after the end of response \d is trained",
    ),
    "the first character is not trained": (
        responses(lambda h, c, e, b: [h, Span(c.text[:1]), Span(c.text[1:], True), e, b]),
        "do not hold the text",
    ),
    "a word in the middle is not trained": (
        responses(lambda h, c, e, b: [h, Span(c.text[:2], True), Span(c.text[2:5]), Span(c.text[5:], True), e, b]),
        "trained stretches",
    ),
    "the user's turn is trained": (
        prompts(lambda h, c, e, b: [h, trained(c), trained(e), b]),
        "trained stretches",
    ),
    "the user's turn is trained and the response is not": (
        lambda message, h, c, e, b: [h, trained(c, not c.train), trained(e, not e.train), b],
        "precedes response|do not hold the text",
    ),
    "the end of turn is plain text": (
        responses(lambda h, c, e, b: [h, c, dataclasses.replace(e, markup=False), b]),
        "end of turn|trained stretches",
    ),
    "the turn ends twice within": (
        responses(lambda h, c, e, b: [h, c, e, Span("more", True), e, b]),
        "after the end of response",
    ),
    "nothing is trained but the first response": (
        lambda message, h, c, e, b: (
            [h, c, e, b] if message.content.startswith("Answer") else [h, trained(c, False), trained(e, False), b]
        ),
        "2 responses to train and 1 trained stretches",
    ),
}


@pytest.mark.parametrize("where", ["everywhere", "in one late row"])
@pytest.mark.parametrize("kind", ["byte_level", "byte_level_begins", "legacy", "unigram"])
@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_a_wrong_mask_is_found(wrong, kind, where):
    change, what = WRONG[wrong]
    late = " 71" if where == "in one late row" else ""
    template = Wrong(change, late)
    with pytest.raises(HarnessError, match=what) as error:
        proven(corpus(), template, tokenization_cases.BUILT[kind])
    assert error.value.where == f"rows.jsonl:{71 if late else 1}"
    assert "the mask of the template wrong is wrong" in error.value.what


def test_unchanged_the_template_is_proven():
    assert (
        proven(
            corpus(), Wrong(lambda message, *turn: list(turn)), tokenization_cases.BUILT["byte_level"]
        ).rows_fully_checked
        <= 2
    )


def test_a_template_that_ignores_which_messages_are_trained_is_found():
    class Ignores(tokenization_cases.Turns):
        name = "ignores"

        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            messages = [dataclasses.replace(message, train=True) for message in messages]
            return super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)

    examples = [*corpus(), tokenization_cases.row("q", "a", "q", "a", number=99, untrained={1})]
    proven(examples, tokenization_cases.Turns(), tokenization_cases.BUILT["byte_level"])
    with pytest.raises(HarnessError, match=r"rows.jsonl:99: .*template ignores.* 1 responses to train and 2 trained"):
        proven(examples, Ignores(), tokenization_cases.BUILT["byte_level"])


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_begins", "legacy"])
def test_two_beginnings_of_sequence_are_found(kind):
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

    proven(corpus(), Once(), tokenization_cases.BUILT[kind])
    with pytest.raises(HarnessError, match=r"rows.jsonl:1: .*second begin-of-sequence token \(<s>\) stands at token 2"):
        proven(corpus(), Twice(), tokenization_cases.BUILT[kind])


def test_a_beginning_of_sequence_within_a_turn_is_found_where_the_tokenizer_puts_one():
    class Within(tokenization_cases.Turns):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            return (
                Span("<|im_start|>", markup=True),
                Span("<s>", markup=True),
                *super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt),
            )

    with pytest.raises(HarnessError, match="second begin-of-sequence"):
        proven(corpus(), Within(), tokenization_cases.BUILT["byte_level_begins"])


def test_a_turn_may_begin_with_the_token_after_the_one_before_has_ended():
    class Each(tokenization_cases.Turns):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
            return [
                Span("<s>" + s.text.strip("\n"), s.train, True) if "start|>user" in s.text else s
                for s in spans
                if s.text != "\n"
            ]

    assert proven(corpus(), Each(), tokenization_cases.BUILT["byte_level_begins"]).rows_verified == LONG


def moved(begin, end):
    def change(example, row):
        if example.location != "rows.jsonl:70":
            return row
        (first, last), *rest = row.trained_spans
        return MaskedTokens(row.ids, [(first + begin, last + end), *rest])

    return change


@pytest.mark.parametrize("kind", sorted(tokenization_cases.KINDS))
@pytest.mark.parametrize(("begin", "end"), [(-1, 0), (-2, 0), (0, -1), (0, 1), (1, 0), (1, 1), (-1, -1)])
def test_one_token_too_many_or_too_few_is_found(kind, begin, end):
    # The header ends with a line break, which some tokenizers drop: then the token before is a word of it.
    with pytest.raises(HarnessError, match=r"rows.jsonl:70: the mask of the template turns is wrong"):
        proven(corpus(), tokenization_cases.Turns(), tokenization_cases.BUILT[kind], moved(begin, end))


def test_a_users_turn_that_says_the_same_is_not_taken_for_the_response():
    examples = [tokenization_cases.row("Yes.", "Yes.", number=n) for n in range(1, LONG + 1)]

    def change(example, row):
        if example.location != "rows.jsonl:70":
            return row
        (begin, end), *_ = row.trained_spans
        size = end - begin
        place = next(i for i in range(len(row.ids)) if row.ids[i : i + size] == row.ids[begin:end])
        assert place < begin
        return MaskedTokens(row.ids, [(place, place + size)])

    with pytest.raises(HarnessError, match=r"rows.jsonl:70: .*precedes response"):
        proven(examples, tokenization_cases.Turns(), tokenization_cases.BUILT["byte_level"], change)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda row: MaskedTokens(row.ids, [(0, len(row.ids))]), "not all of the text"),
        (lambda row: MaskedTokens(row.ids, [(1, len(row.ids) - 1)]), "not all of the text"),
        (lambda row: MaskedTokens(row.ids[:-1], [(1, len(row.ids) - 1)]), "the end of the text is not trained"),
        (lambda row: MaskedTokens([*row.ids[:2], *row.ids[3:]], [(1, len(row.ids) - 1)]), "not those of the text"),
    ],
)
def test_a_plain_text_that_is_not_trained_whole_is_found(change, what):
    examples = [tokenization_cases.plain(f"The Elbe is {n} long.", n) for n in range(1, 20)]
    with pytest.raises(HarnessError, match=what) as error:
        proven(
            examples,
            tokenization_cases.Turns(),
            tokenization_cases.BUILT["byte_level"],
            lambda e, row: change(row) if e is examples[15] else row,
        )
    assert error.value.where == "texts.jsonl:16"


def test_calls_that_are_not_trained_are_found():
    def without(message, *turn):
        return [turn[0], dataclasses.replace(turn[1], text=turn[1].text.replace("depth", "width")), *turn[2:]]

    bad = dataclasses.replace(tokenization_cases.called(2), tools=())
    with pytest.raises(HarnessError, match="do not hold the calls of response 2"):
        proven([bad], Wrong(without), tokenization_cases.BUILT["byte_level"])
