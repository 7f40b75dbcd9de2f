"""chrF compared with sacrebleu."""

from __future__ import annotations

import pytest
from sacrebleu.metrics import CHRF

H = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
R1 = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
R2 = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]


def test_two_references_give_the_known_value(score):
    references = [list(pair) for pair in zip(R1, R2, strict=True)]
    assert score("chrf", H, references)["chrf"] == pytest.approx(59.72751782684763, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "reference", "smoothed", "value"),
    [("abcdefg", "hijklmnop", 0.0, 0.0), ("aa", "ab", 8.3333, 25.0), ("a b c", "abc", 50.0, 100.0)],
)
def test_orders_without_ngrams_are_ignored(score, answer, reference, smoothed, value):
    # sacrebleu's tests count them as misses, with its `eps_smoothing`; its default, and ours, does not.
    theirs = CHRF(eps_smoothing=True).sentence_score(answer, [reference]).score
    assert theirs == pytest.approx(smoothed, abs=1e-4)
    assert score("chrf", [answer], [reference])["chrf"] == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("word_order", [0, 2])
@pytest.mark.parametrize("lowercase", [False, True])
def test_summed_statistics_equal_corpus_score(score, word_order, lowercase):
    answers, references = [*H, "", "YES", "今天天气很好"], [*R1, "Nothing.", "yes", "今天天气非常好"]
    theirs = CHRF(word_order=word_order, lowercase=lowercase).corpus_score(answers, [references]).score
    ours = score("chrf", answers, references, word_order=word_order, lowercase=lowercase)
    assert ours["chrf"] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("word_order", "value"), [(0, 45.74), (2, 39.21)])
def test_chinese_needs_no_tokenizer(score, word_order, value):
    pair = ["今天天气很好，我们去公园玩。"], ["今天天气非常好，我们去公园散步。"]
    assert score("chrf", *pair, word_order=word_order)["chrf"] == pytest.approx(value, abs=0.005)


def test_empty_answers_lower_the_score(score):
    assert score("chrf", ["", ""], R1[:2])["chrf"] == 0.0
    assert score("chrf", [*H, ""], [*R1, "One more."])["chrf"] < score("chrf", H, R1)["chrf"]


def test_signature_names_version_and_options(metric):
    signature = metric("chrf", word_order=2, lowercase=True).signature()
    assert signature.startswith("chrf|nrefs:1|case:lc|eff:yes|nc:6|nw:2|space:no|version:")
