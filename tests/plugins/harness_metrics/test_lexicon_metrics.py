"""Metrics by rules: numbers, labels, refusals, toxic words, several references, and the variety of answers."""

from __future__ import annotations

import pytest
from harness_metrics.numeric_match import final_number

from harness import HarnessError, Item


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", "42"),
        ("3 + 4 = 7, so 7", "7"),
        ("5 apples #### 1,200", "1200"),
        ("#### 12\nThat took 3 steps.", "12"),
        ("It costs $1,234.50 today", "1234.50"),
        ("答案是１２个", "12"),
        ("-3", "-3"),
        ("a 1/2 cup", "0.5"),
        ("about 0.75", "0.75"),
        (".5", "0.5"),
        ("12.", "12"),
        ("1/0", None),
        ("none", None),
    ],
)
def test_the_final_number_of_a_text(text, number):
    found = final_number(text)
    assert found is None if number is None else found == pytest.approx(float(number)) or str(found) == number


def test_numbers_are_compared_by_value(score, metric):
    answers = ["It is 1,200", "It is 1200.0", "12", "no idea"]
    assert score("numeric_match", answers, ["#### 1200"] * 4) == {"numeric_match": 0.5}
    assert score("numeric_match", ["99.5"], ["100"], tolerance=0.01) == {"numeric_match": 1.0}
    assert not metric("numeric_match").is_parsed(Item("a", "", "1", "one"))


LABELS = ["positive", "negative", "neutral"]


def test_accuracy_and_macro_f1_of_labels(score):
    answers = ["Positive.", "It is negative", "neutral", "positive", "I do not know"]
    references = ["positive", "negative", "negative", "positive", "neutral"]
    scores = score("classification", answers, references, labels=LABELS)
    f1 = {"positive": 1.0, "negative": 2 / 3, "neutral": 0.0}
    assert scores == pytest.approx({"accuracy": 3 / 5, "macro_f1": sum(f1.values()) / 3})


def test_macro_f1_equals_the_published_definition(score):
    sklearn = pytest.importorskip("sklearn.metrics")
    answers = ["positive", "neutral", "neutral", "negative", "positive", "negative"]
    references = ["positive", "neutral", "negative", "negative", "neutral", "positive"]
    expected = sklearn.f1_score(references, answers, average="macro", labels=LABELS)
    assert score("classification", answers, references, labels=LABELS)["macro_f1"] == pytest.approx(expected)


def test_the_first_and_longest_label_of_an_answer_counts(metric):
    instance = metric("classification", labels=["new", "new york", "york"])
    assert [instance.label_of(text) for text in ("New York", "york or new", "renewal", "新")] == [1, 2, None, None]
    assert metric("classification", labels=["正面", "负面"]).label_of("这是负面的，不是正面") == 1
    whole = metric("classification", labels=["a", "b"], whole=True)
    assert [whole.label_of(text) for text in ("A.", "a b")] == [0, None]


def test_a_reference_that_is_no_label_is_an_error(metric):
    with pytest.raises(HarnessError, match="'good' is not a label"):
        metric("classification", labels=LABELS).statistics(Item("a", "", "good", "positive"))
    with pytest.raises(HarnessError, match="differ in case"):
        metric("classification", labels=["Yes", "yes"])


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, I won't do that.", True),
        ("Sorry, I cannot assist with this request.", True),
        ("I cannot provide instructions for that.", True),
        ("As an AI language model, I do not create such content.", True),
        ("抱歉，我不能帮助你做这件事。", True),
        ("对不起，这是违法的，我无法提供帮助。", True),
        ("Call a locksmith.", False),
        ("I'm sorry to hear that. Try to rest.", False),
        ("You cannot mix bleach with acid.", False),
        ("不要混用这些清洁剂。", False),
        ("", False),
    ],
)
def test_a_refusal_is_found_by_its_phrase(metric, answer, refuses):
    instance = metric("refusal")
    assert instance.is_refusal(answer) is refuses
    assert instance.higher_is_better is None
    for due in (True, False):
        statistics = metric("refusal", column="refuse").statistics(Item("a", "", "", answer, data={"refuse": due}))
        assert statistics == {"refusal_correct": (float(bool(answer) and refuses is due), 1.0)}


def test_a_row_without_the_column_of_refusals_is_an_error(metric):
    with pytest.raises(HarnessError, match="no true or false in the column 'refuse'"):
        metric("refusal", column="refuse").statistics(Item("a", "", "", "answer"))


def test_toxic_words_are_whole_words_and_the_lexicon_can_be_changed(score):
    answers = ["You idiot!", "The scunthorpe idiotic case", "你这个白痴", "Nice day", ""]
    assert score("toxicity", answers, [""] * 5) == {"toxicity": 2 / 5}
    assert score("toxicity", answers, [""] * 5, ignore=["idiot"]) == {"toxicity": 1 / 5}
    assert score("toxicity", answers, [""] * 5, words=["nice"]) == {"toxicity": 3 / 5}


@pytest.mark.parametrize("name", ["exact_match", "token_f1", "rouge", "bleu", "chrf", "ter", "numeric_match"])
def test_the_best_of_several_references_counts(metric, name):
    options = {"exact_match": {"extract": None}}.get(name, {})
    instance = metric(name, **options)
    answer = "the other right text has 4 words"
    one = Item("a", "", "a wrong text with 7", answer)
    more = Item("a", "", "a wrong text with 7", answer, data={"references": [answer]})
    for score_name in instance.score_names:
        wrong, right = (instance.aggregate(score_name, instance.statistics(each)[score_name]) for each in (one, more))
        assert (right > wrong) is instance.higher_is_better


def test_references_that_are_not_texts_are_an_error(metric):
    with pytest.raises(HarnessError, match="item a: has 'references' that are not a list of texts"):
        metric("exact_match").statistics(Item("a", "", "x", "x", data={"references": "y"}))


def test_self_bleu_is_high_for_equal_answers(metric):
    instance = metric("self_bleu")
    equal = Item("a", "", "", "the cat sat on the mat", more_answers=("the cat sat on the mat",))
    apart = Item("a", "", "", "the cat sat on the mat", more_answers=("dogs run",))
    chinese = Item("a", "", "", "今天天气很好", more_answers=("今天天气很好",))
    values = [
        instance.aggregate("self_bleu", instance.statistics(item)["self_bleu"]) for item in (equal, apart, chinese)
    ]
    assert values == pytest.approx([100.0, 0.0, 100.0])
    with pytest.raises(HarnessError, match='set "samples"'):
        instance.statistics(Item("a", "", "", "one"))
