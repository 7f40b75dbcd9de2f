"""BLEU compared with sacrebleu."""

from __future__ import annotations

import pytest

H = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
R1 = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
R2 = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
BOTH = [list(pair) for pair in zip(R1, R2, strict=True)]
ZH, ZH_REFERENCE = "今天天气很好，我们去公园玩。", "今天天气非常好，我们去公园散步。"


@pytest.mark.parametrize(
    ("tokenize", "value"),
    [("auto", 48.530827), ("13a", 48.530827), ("none", 49.1919566), ("intl", 43.91623493)],
)
def test_two_references_give_the_values_of_sacrebleus_tests(score, tokenize, value):
    assert score("bleu", H, BOTH, tokenize=tokenize)["bleu"] == pytest.approx(value, abs=1e-6)


def test_one_reference_gives_the_known_value(score):
    assert score("bleu", H, R1)["bleu"] == pytest.approx(45.06750632106114, abs=1e-9)


@pytest.mark.parametrize("tokenize", ["13a", "zh", "char", "intl", "none"])
@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("effective_order", [False, True])
def test_summed_statistics_equal_corpus_score(score, tokenize, lowercase, effective_order):
    from sacrebleu.metrics import BLEU

    answers, references = [*H, "", "YES", ZH], [*R1, "Nothing.", "yes", ZH_REFERENCE]
    theirs = BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=effective_order)
    ours = score("bleu", answers, references, tokenize=tokenize, lowercase=lowercase, effective_order=effective_order)
    assert ours["bleu"] == pytest.approx(theirs.corpus_score(answers, [references]).score, abs=1e-9)


def test_chinese_is_tokenized_as_chinese_by_default(score):
    assert score("bleu", [ZH], [ZH_REFERENCE])["bleu"] == pytest.approx(54.59709700160348, abs=1e-6)
    assert score("bleu", [ZH], [ZH_REFERENCE], tokenize="13a")["bleu"] == 0.0


def test_effective_order_scores_short_answers(score):
    short = ["the cat sat"], ["the cat sat down"]
    assert score("bleu", *short)["bleu"] == 0.0
    assert score("bleu", *short, effective_order=True)["bleu"] == pytest.approx(71.65313105737896, abs=1e-9)


def test_empty_answers_lower_the_score(score):
    assert score("bleu", ["", "", ""], R1)["bleu"] == 0.0
    assert score("bleu", [*H, ""], [*R1, "One more sentence."])["bleu"] < score("bleu", H, R1)["bleu"]


def test_signature_names_version_and_options(metric):
    plain = metric("bleu", tokenize="13a", lowercase=True, effective_order=True).signature()
    assert plain.startswith("bleu|nrefs:1|case:lc|eff:yes|tok:13a|smooth:exp|version:")
    assert "tok:harness-auto1(13a,zh,char)" in metric("bleu").signature()


@pytest.mark.parametrize(
    ("tokenize", "lowercase", "value"),
    [("13a", False, 8.493), ("none", False, 7.347), ("char", False, 40.8759), ("char", True, 42.0267)],
)
def test_one_sentence_gives_the_values_of_sacrebleus_tests(score, tokenize, lowercase, value):
    answer = ["Producția de zahăr primă va fi exprimată în ceea ce privește zahărul alb;"]
    reference = ["producţia de zahăr brut se exprimă în zahăr alb;"]
    options = {"tokenize": tokenize, "lowercase": lowercase, "effective_order": True}
    assert score("bleu", answer, reference, **options)["bleu"] == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize(
    ("lang", "tokenize"), [("en", "13a"), ("zh", "zh"), ("yue", "zh"), ("ja", "char"), ("ko", "char"), ("th", "char")]
)
def test_lang_selects_the_tokenizer(score, metric, lang, tokenize):
    pair = ["東京大学 is here"], ["東京大学 was here"]
    assert score("bleu", *pair, lang=lang) == score("bleu", *pair, tokenize=tokenize)
    assert f"|tok:{tokenize}|" in metric("bleu", lang=lang).signature()
