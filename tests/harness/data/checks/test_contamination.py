"""What training gives away of held-out rows: prompts, stretches, common phrases; in scripts with and without spaces."""

from __future__ import annotations

import pytest

from harness.data.checks.contamination import find_contamination
from harness.types import Example, Message

LONG = "the old clock in the tall tower of the town hall strikes every hour except at noon on sundays"
OTHER = "please tell me how many litres of water a garden of forty square metres needs in a dry summer"


def row(prompt, response="Yes.", place="e:1", system=None):
    messages = [Message("user", prompt), Message("assistant", response)]
    return Example(place, tuple([Message("system", system)] * (system is not None) + messages), place)


def found(item, *training, **options):
    items = item if isinstance(item, list) else [item]
    rows = [one if isinstance(one, Example) else row(one) for one in training]
    rows = [Example(f"t:{n}", one.messages, f"t:{n}") for n, one in enumerate(rows, 1)]
    return find_contamination({"suite": items}, {"source": rows}, **options)["suite"]


def test_rows_that_share_nothing_are_clean():
    clean = found(row(LONG), OTHER, "How are you?")
    assert (clean.items, clean.same_prompts, clean.same_responses) == (1, 0, 1)  # all of them say yes
    assert (clean.overlapping, clean.common, clean.prompts, clean.responses, clean.worst) == (0, 0, 0, 0, ())


def test_a_short_prompt_in_the_same_words_is_found_as_a_whole():
    (overlap,) = (one := found(row("What is the capital of France?"), OTHER, "what is the CAPITAL of France")).worst
    assert (one.same_prompts, one.overlapping, one.prompts) == (1, 0, 1)
    assert (overlap.item, overlap.row, overlap.source, overlap.side) == ("e:1", "t:2", "source", "prompt")
    assert (overlap.covered, overlap.text) == (1.0, "What is the capital of France?")


def test_a_prompt_in_the_middle_of_a_trained_conversation_is_found_and_one_that_is_not_trained_is_not():
    item = row("What is the capital of France?")
    for trained in (True, False):
        turns = [
            Message("user", "what is the CAPITAL of France"),
            Message("assistant", "Paris.", train=trained),
            Message("user", "And of Spain?"),
            Message("assistant", "Madrid."),
        ]
        assert found(item, Example("t", tuple(turns), "t:1")).same_prompts == trained
    assert found(row("And of Spain?"), Example("t", tuple(turns), "t:1")).same_prompts == 0


def test_a_short_prompt_inside_a_longer_one_is_not():
    assert found(row("Who was he?"), "We spoke of Bach. Who was he? And where did he live?").prompts == 0


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none():
    words = LONG.split()
    assert found(row(LONG), " ".join(["x", *words[:13], "y"])).overlapping == 1
    assert found(row(LONG), " ".join(["x", *words[:12], "y"])).overlapping == 0
    assert found(row(LONG), " ".join(["x", *words[:12], "y"]), ngram=12).overlapping == 1


def test_the_row_that_shares_most_is_named_with_the_text_and_how_much_all_rows_cover():
    words = LONG.split()  # 19 of them
    result = found(row(LONG), OTHER, " ".join(words[:13]), " ".join([*words[4:]]))
    (overlap,) = result.worst
    assert (overlap.row, overlap.text, overlap.covered) == ("t:3", " ".join(words[4:]), 1.0)


def test_a_prompt_is_given_away_from_the_share_of_its_words_that_is_asked_for():
    item = row(f"{LONG} {OTHER}")
    share = 19 / 38
    assert found(item, LONG, covered=share).prompts == 1
    assert found(item, LONG, covered=share + 0.01).prompts == 0
    assert found(item, LONG, covered=share + 0.01).overlapping == 1


def test_a_response_is_told_apart_from_a_prompt():
    result = found(row("Say it.", LONG), row("Repeat.", LONG))
    assert (result.prompts, result.responses, result.same_responses) == (0, 1, 1)
    assert [one.side for one in result.worst] == ["response"]


def test_no_stretch_goes_from_a_prompt_into_its_response():
    words = LONG.split()
    assert found(row(LONG), row(" ".join(words[:9]), " ".join(words[9:]))).overlapping == 0


def test_what_stands_in_many_rows_is_a_common_phrase():
    many = [f"{LONG} number {number}" for number in range(11)]
    result = found(row(f"{LONG} or not"), *many)
    assert (result.overlapping, result.common, result.prompts, result.worst) == (0, 1, 0, ())
    assert found(row(f"{LONG} or not"), *many[:10]).overlapping == 1
    assert found(row(f"{LONG} or not"), *many, common=11).overlapping == 1


def test_a_prompt_asked_very_often_in_the_same_words_is_still_given_away():
    assert found(row(LONG), *[row(LONG, f"answer {number}") for number in range(30)]).prompts == 1


def test_a_system_message_that_items_share_does_not_count_and_one_of_an_item_alone_does():
    items = [row(f"question {number}", place=f"e:{number}", system=LONG) for number in range(3)]
    training = row("something else", system=LONG)
    assert found(items, training).overlapping == 0
    assert found(items[:1], training).overlapping == 1


ZH = "故宫始建于明朝永乐年间是世界上现存规模最大的木质结构古建筑群之一"


def test_scripts_without_spaces_are_compared_by_characters():
    assert found(row(ZH), f"请看{ZH[:20]}吧").overlapping == 1
    assert found(row(ZH), f"请看{ZH[:19]}吧").overlapping == 0
    assert found(row(ZH), f"请看{ZH[:19]}吧", characters=19).worst[0].text == ZH[:19]


def test_suites_are_told_apart_and_rows_named_across_batches_and_sources():
    suites = {"a": [row(LONG, "Yes, a.", "a:1")], "b": [row(OTHER, "Yes, b.", "b:1")]}
    filler = [row(f"filler {number}", "no", f"f:{number}") for number in range(700)]
    training = {"one": filler, "two": [*filler, row(OTHER, "no", "two:1")]}
    result = find_contamination(suites, training)
    assert result["a"].prompts == 0
    assert [(one.row, one.source) for one in result["b"].worst] == [("two:1", "two")]


def text(content, place="e:1"):
    return Example(place, (Message("text", content),), place)


@pytest.mark.parametrize("held", [text(f"so {LONG}"), row("Say it.", f"Well, {LONG}."), row(f"{LONG}?")])
def test_a_plain_text_is_given_away_by_long_stretches_wherever_they_stand_in_training(held):
    result = found(text(LONG), text(OTHER), held)
    assert (result.kind, result.items, result.prompts, result.responses, result.overlapping) == ("text", 1, 1, 0, 1)
    (overlap,) = result.worst
    assert (overlap.item, overlap.row, overlap.side, overlap.covered, overlap.text) == ("e:1", "t:2", "text", 1.0, LONG)
    assert found(text(f"{LONG} {OTHER} {OTHER[::-1]}"), held).prompts == 0, "less than half of it"


def test_a_short_plain_text_is_given_away_where_the_same_words_are_trained():
    later = (Message("user", "More?"), Message("assistant", "No."))

    def talk(trained):
        return Example(
            "t",
            (*row("Go on.", "chapter one").messages[:1], Message("assistant", "chapter one", train=trained), *later),
            "t",
        )

    for held in (text("CHAPTER one"), row("Go on.", "Chapter one!"), talk(True)):
        result = found(text("Chapter One."), text("Chapter two."), held)
        assert (result.same_prompts, result.prompts, result.same_responses) == (1, 1, 0)
        assert (result.worst[0].row, result.worst[0].side, result.worst[0].text) == ("t:2", "text", "Chapter One.")
    for held in (text("So chapter one."), row("Chapter one?", "No."), talk(False)):
        assert found(text("Chapter One."), held).prompts == 0


def test_a_prompt_that_is_trained_as_a_plain_text_is_given_away():
    result = found(row("What is the capital of France?"), text("What is the capital of France?"))
    assert (result.kind, result.same_prompts, result.prompts) == ("prompt", 1, 1)


@pytest.mark.parametrize("suites", [{}, {"empty": []}])
def test_nothing_to_look_for_is_found_nowhere(suites):
    assert all(one.items == 0 for one in find_contamination(suites, {"t": [row(LONG)]}).values())


def test_progress_goes_over_all_training_rows():
    told = []

    def progress(phase, done, total, note="", unit=""):
        told.append((done, total, note))

    find_contamination({}, {"a": [row(LONG)] * 513, "b": [row(OTHER)]}, progress=progress)
    assert told == [(512, 514, "a"), (513, 514, "a"), (514, 514, "b")]
