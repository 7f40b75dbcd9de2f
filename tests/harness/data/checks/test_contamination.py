"""Contamination of held-out rows: prompts, shared n-grams, common phrases; in scripts with and without spaces."""

from __future__ import annotations

import pytest

from harness.data.checks.contamination import find_contamination
from harness.types import Example, Message

LONG = "the old clock in the tall tower of the town hall strikes every hour except at noon on sundays"
OTHER = "please tell me how many litres of water a garden of forty square metres needs in a dry summer"


def build_row(prompt, response="Yes.", location="e:1", system=None):
    messages = [Message("user", prompt), Message("assistant", response)]
    return Example(location, tuple([Message("system", system)] * (system is not None) + messages), location)


def contamination_of(item, *training, **options):
    """The contamination of one item, or a list of items, by training rows (or prompts) at t:1, t:2, ..."""
    items = item if isinstance(item, list) else [item]
    rows = [row if isinstance(row, Example) else build_row(row) for row in training]
    rows = [Example(f"t:{n}", row.messages, f"t:{n}") for n, row in enumerate(rows, 1)]
    return find_contamination({"suite": items}, {"source": rows}, **options)["suite"]


def test_rows_without_shared_text_are_clean():
    clean = contamination_of(build_row(LONG), OTHER, "How are you?")
    assert (clean.items, clean.same_prompts, clean.same_responses) == (1, 0, 1)  # the default response
    assert (clean.overlapping, clean.common, clean.prompts, clean.responses, clean.worst) == (0, 0, 0, 0, ())


def test_short_prompt_in_the_same_words_is_contaminated():
    report = contamination_of(build_row("What is the capital of France?"), OTHER, "what is the CAPITAL of France")
    (overlap,) = report.worst
    assert (report.same_prompts, report.overlapping, report.prompts) == (1, 0, 1)
    assert (overlap.item, overlap.row, overlap.source, overlap.side) == ("e:1", "t:2", "source", "prompt")
    assert (overlap.covered, overlap.text) == (1.0, "What is the capital of France?")


def test_prompt_within_a_conversation_is_contaminated_only_if_its_response_is_trained():
    item = build_row("What is the capital of France?")
    for trained in (True, False):
        turns = [
            Message("user", "what is the CAPITAL of France"),
            Message("assistant", "Paris.", train=trained),
            Message("user", "And of Spain?"),
            Message("assistant", "Madrid."),
        ]
        assert contamination_of(item, Example("t", tuple(turns), "t:1")).same_prompts == trained
    assert contamination_of(build_row("And of Spain?"), Example("t", tuple(turns), "t:1")).same_prompts == 0


def test_short_prompt_inside_a_longer_one_is_clean():
    assert (
        contamination_of(build_row("Who was he?"), "We spoke of Bach. Who was he? And where did he live?").prompts == 0
    )


def test_thirteen_shared_words_overlap_and_twelve_do_not():
    words = LONG.split()
    assert contamination_of(build_row(LONG), " ".join(["x", *words[:13], "y"])).overlapping == 1
    assert contamination_of(build_row(LONG), " ".join(["x", *words[:12], "y"])).overlapping == 0
    assert contamination_of(build_row(LONG), " ".join(["x", *words[:12], "y"]), ngram=12).overlapping == 1


def test_overlap_names_the_row_that_shares_most_and_the_share_that_all_rows_cover():
    words = LONG.split()  # 19 of them
    result = contamination_of(build_row(LONG), OTHER, " ".join(words[:13]), " ".join([*words[4:]]))
    (overlap,) = result.worst
    assert (overlap.row, overlap.text, overlap.covered) == ("t:3", " ".join(words[4:]), 1.0)


def test_prompt_is_contaminated_from_the_covered_share():
    item = build_row(f"{LONG} {OTHER}")
    share = 19 / 38
    assert contamination_of(item, LONG, covered=share).prompts == 1
    assert contamination_of(item, LONG, covered=share + 0.01).prompts == 0
    assert contamination_of(item, LONG, covered=share + 0.01).overlapping == 1


def test_responses_and_prompts_are_counted_separately():
    result = contamination_of(build_row("Say it.", LONG), build_row("Repeat.", LONG))
    assert (result.prompts, result.responses, result.same_responses) == (0, 1, 1)
    assert [overlap.side for overlap in result.worst] == ["response"]


def test_no_ngram_crosses_from_prompt_to_response():
    words = LONG.split()
    assert contamination_of(build_row(LONG), build_row(" ".join(words[:9]), " ".join(words[9:]))).overlapping == 0


def test_ngram_in_many_rows_is_a_common_phrase():
    many = [f"{LONG} number {number}" for number in range(11)]
    result = contamination_of(build_row(f"{LONG} or not"), *many)
    assert (result.overlapping, result.common, result.prompts, result.worst) == (0, 1, 0, ())
    assert contamination_of(build_row(f"{LONG} or not"), *many[:10]).overlapping == 1
    assert contamination_of(build_row(f"{LONG} or not"), *many, common=11).overlapping == 1


def test_frequent_prompt_in_the_same_words_is_contaminated():
    assert (
        contamination_of(build_row(LONG), *[build_row(LONG, f"answer {number}") for number in range(30)]).prompts == 1
    )


def test_system_message_counts_only_if_no_other_item_has_it():
    items = [build_row(f"question {number}", location=f"e:{number}", system=LONG) for number in range(3)]
    training = build_row("something else", system=LONG)
    assert contamination_of(items, training).overlapping == 0
    assert contamination_of(items[:1], training).overlapping == 1


ZH = "故宫始建于明朝永乐年间是世界上现存规模最大的木质结构古建筑群之一"


def test_unspaced_scripts_are_compared_by_characters():
    assert contamination_of(build_row(ZH), f"请看{ZH[:20]}吧").overlapping == 1
    assert contamination_of(build_row(ZH), f"请看{ZH[:19]}吧").overlapping == 0
    assert contamination_of(build_row(ZH), f"请看{ZH[:19]}吧", characters=19).worst[0].text == ZH[:19]


def test_rows_are_named_per_suite_across_batches_and_sources():
    suites = {"a": [build_row(LONG, "Yes, a.", "a:1")], "b": [build_row(OTHER, "Yes, b.", "b:1")]}
    filler = [build_row(f"filler {number}", "no", f"f:{number}") for number in range(700)]
    training = {"one": filler, "two": [*filler, build_row(OTHER, "no", "two:1")]}
    result = find_contamination(suites, training)
    assert result["a"].prompts == 0
    assert [(overlap.row, overlap.source) for overlap in result["b"].worst] == [("two:1", "two")]


def build_text(content, location="e:1"):
    return Example(location, (Message("text", content),), location)


@pytest.mark.parametrize(
    "training_row", [build_text(f"so {LONG}"), build_row("Say it.", f"Well, {LONG}."), build_row(f"{LONG}?")]
)
def test_plain_text_is_contaminated_by_shared_ngrams_anywhere_in_training(training_row):
    result = contamination_of(build_text(LONG), build_text(OTHER), training_row)
    assert (result.kind, result.items, result.prompts, result.responses, result.overlapping) == ("text", 1, 1, 0, 1)
    (overlap,) = result.worst
    assert (overlap.item, overlap.row, overlap.side, overlap.covered, overlap.text) == ("e:1", "t:2", "text", 1.0, LONG)
    assert contamination_of(build_text(f"{LONG} {OTHER} {OTHER[::-1]}"), training_row).prompts == 0, (
        "less than half is covered"
    )


def test_short_plain_text_is_contaminated_only_by_trained_text():
    later = (Message("user", "More?"), Message("assistant", "No."))

    def build_conversation(trained):
        return Example(
            "t",
            (
                *build_row("Go on.", "chapter one").messages[:1],
                Message("assistant", "chapter one", train=trained),
                *later,
            ),
            "t",
        )

    for training_row in (build_text("CHAPTER one"), build_row("Go on.", "Chapter one!"), build_conversation(True)):
        result = contamination_of(build_text("Chapter One."), build_text("Chapter two."), training_row)
        assert (result.same_prompts, result.prompts, result.same_responses) == (1, 1, 0)
        assert (result.worst[0].row, result.worst[0].side, result.worst[0].text) == ("t:2", "text", "Chapter One.")
    for training_row in (build_text("So chapter one."), build_row("Chapter one?", "No."), build_conversation(False)):
        assert contamination_of(build_text("Chapter One."), training_row).prompts == 0


def test_prompt_trained_as_plain_text_is_contaminated():
    result = contamination_of(build_row("What is the capital of France?"), build_text("What is the capital of France?"))
    assert (result.kind, result.same_prompts, result.prompts) == ("prompt", 1, 1)


@pytest.mark.parametrize("suites", [{}, {"empty": []}])
def test_empty_suites_have_no_contamination(suites):
    assert all(report.items == 0 for report in find_contamination(suites, {"t": [build_row(LONG)]}).values())


def test_progress_counts_all_training_rows():
    reported = []

    def progress(phase, done, total, note="", unit=""):
        reported.append((done, total, note))

    find_contamination({}, {"a": [build_row(LONG)] * 513, "b": [build_row(OTHER)]}, progress=progress)
    assert reported == [(512, 514, "a"), (513, 514, "a"), (514, 514, "b")]
