"""TER compared with sacrebleu."""

from __future__ import annotations

import pytest
from sacrebleu.metrics import TER

H = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
R1 = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
R2 = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]


def test_two_references_give_the_known_value(score):
    references = [list(pair) for pair in zip(R1, R2, strict=True)]
    assert score("ter", H, references)["ter"] == pytest.approx(40.0, abs=1e-9)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("no_punct", [False, True])
@pytest.mark.parametrize("case_sensitive", [False, True])
def test_summed_statistics_equal_corpus_score(score, normalized, no_punct, case_sensitive):
    options = {"normalized": normalized, "no_punct": no_punct, "case_sensitive": case_sensitive}
    answers, references = [*H, "", "YES no"], [*R1, "Nothing.", "no yes"]
    theirs = TER(**options).corpus_score(answers, [references]).score
    assert score("ter", answers, references, **options)["ter"] == pytest.approx(theirs, abs=1e-9)


def test_scripts_without_spaces_are_edited_per_character(score):
    # 很→非, 玩→散, and 常, 步 added: 4 edits in 16 characters. Uncut, a sentence would be one wrong word.
    pair = ["今天天气很好，我们去公园玩。"], ["今天天气非常好，我们去公园散步。"]
    assert score("ter", *pair)["ter"] == pytest.approx(100 * 4 / 16)
    assert score("ter", *pair, lang="en")["ter"] == 100.0
    assert score("ter", ["오늘은 공원에 갔다"], ["오늘은 산에 갔다"])["ter"] == pytest.approx(100 * 2 / 7)


def test_an_empty_answer_costs_one_edit_per_word(score, metric):
    assert score("ter", [""], ["text of four words"])["ter"] == 100.0
    assert metric("ter").higher_is_better is False


def test_signature_names_version_and_options(metric):
    signature = metric("ter", lang="zh", no_punct=True).signature()
    assert signature.startswith("ter|nrefs:1|case:lc|tok:tercom+harness-cjk2|lang:zh|norm:no|punct:no|version:")
