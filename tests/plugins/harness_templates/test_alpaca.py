"""Alpaca's prompt, to the letter."""

from __future__ import annotations

import pytest

from harness import HarnessError, Message, Span

PLAIN = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)


@pytest.fixture
def alpaca(make):
    return make("alpaca")


def test_a_single_turn_has_the_published_text(alpaca, tokenizer, single, marked):
    expected = PLAIN + "### Instruction:\nName a river.\n\n### Response:\n⟦The Elbe.</s>⟧"
    assert marked(alpaca.render(single, tokenizer)) == expected


def test_an_input_has_its_heading(alpaca, tokenizer, with_input, marked):
    expected = WITH_INPUT + ("### Instruction:\nSum up.\n\n### Input:\nA long story.\n\n### Response:\n⟦A story.</s>⟧")
    assert marked(alpaca.render(with_input, tokenizer)) == expected


def test_a_blank_input_counts_as_none(alpaca, tokenizer, single):
    blank = (Message("user", "Name a river.", input=" \n"), single[1])
    assert alpaca.render(blank, tokenizer) == alpaca.render(single, tokenizer)


def test_several_turns_repeat_the_headings(alpaca, tokenizer, multi, marked):
    expected = PLAIN + (
        "### Instruction:\nName a river.\n\n### Response:\n⟦The Elbe.</s>⟧"
        "\n\n### Instruction:\n再说一条河。\n\n### Response:\n⟦长江 🙂</s>⟧"
    )
    assert marked(alpaca.render(multi, tokenizer)) == expected


def test_a_system_message_replaces_the_preface(alpaca, tokenizer, single, marked):
    expected = "Be brief.\n\n### Instruction:\nName a river.\n\n### Response:\n⟦The Elbe.</s>⟧"
    assert marked(alpaca.render((Message("system", "Be brief."), *single), tokenizer)) == expected


def test_the_generation_prompt_ends_with_the_header(alpaca, tokenizer, single, marked):
    expected = PLAIN + "### Instruction:\nName a river.\n\n### Response:\n"
    assert marked(alpaca.render(single[:1], tokenizer, add_generation_prompt=True)) == expected


def test_contents_are_not_markup(alpaca, tokenizer, with_input):
    spans = alpaca.render(with_input, tokenizer)
    assert [span.text for span in spans if not span.markup] == ["Sum up.", "A long story.", "A story."]
    assert spans[-1] == Span("</s>", train=True, markup=True)


def test_generation_stops_at_the_end_of_sequence(alpaca, tokenizer):
    assert alpaca.stop_strings(tokenizer) == ("</s>",)


def test_a_tokenizer_without_end_of_sequence_is_refused(alpaca, single):
    with pytest.raises(HarnessError, match="no end-of-sequence token"):
        alpaca.render(single, type("Tokenizer", (), {"eos_token": None})())
