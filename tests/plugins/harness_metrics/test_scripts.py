"""Every text metric in every script: identical text scores best, text without common words worst."""

from __future__ import annotations

import pytest
from harness_metrics.tokenization import tokenize_words
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

BEST = {"bleu": 100.0, "chrf": 100.0, "ter": 0.0}
"""The best score of metrics whose best score is not 1."""

SCRIPTS = {
    "english": ("en", "The dog bit the man in the park.", "Why should anybody ever buy fish?"),
    "chinese": ("zh", "今天天气很好，我们去公园玩。", "猫咪正在睡觉！别吵醒它们吧？"),
    "traditional chinese": ("yue", "今日天氣好好，我哋去公園玩。", "隻貓瞓緊覺！唔好嘈醒佢啦？"),
    "rare han": ("lzh", "他姓𠮷，住在𡈽城里。", "𪜀𪜁𪜂𪜃𪜄𪜅"),
    "japanese": ("ja", "今日は公園へ行きました。", "ネコがねむい！"),
    "kana": ("ja", "きょうはいいてんきです", "ネコガミルクヲノム"),
    "half-width kana": ("ja", "ｷｮｳﾊｲｲﾃﾝｷ", "ねこがねむる"),
    "korean": ("ko", "오늘은 공원에 갔다", "저 개가 빵집 빨리 뛰어!"),
    "thai": ("th", "วันนี้อากาศดีมาก", "ฝุ่นเยอะๆ"),
    "lao": ("lo", "ມື້ນີ້ອາກາດດີ", "ແຈ່ວຮ້ອນ"),
    "khmer": ("km", "ថ្ងៃនេះអាកាសធាតុល្អ", "ខ្មែរ"),
    "burmese": ("my", "ဒီနေ့ရာသီဥတုကောင်းတယ်", "ကြက်ဖ"),
    "shan": ("shn", "ဝၼ်းၼႆႉလီ", "မႂ်ႇသုင်"),
    "tibetan": ("bo", "དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག", "ཁྱི་ཤིག་ཟོས"),
    "yi": ("ii", "ꊿꂷꃅꄿꐨꐥꌅꅍꀂꏽ", "ꁨꉌꑌꆀꌋꀕ"),
    "javanese": ("auto", "ꦲꦤꦕꦫꦏꦢꦠꦱꦮꦭ", "ꦥꦝꦗꦪꦚ"),
    "hindi": ("hi", "आज मौसम बहुत अच्छा है।", "कुत्ते भौंकते थे!"),
    "arabic": ("ar", "الطقس جميل جدا اليوم", "نرى قطة تشرب؟ هكذا"),
    "hebrew": ("he", "מזג האוויר היום יפה מאוד", "כלבים קטנטנים נבחו שלשום!"),
    "russian": ("ru", "Сегодня очень хорошая погода.", "Кот пьёт или ждёт?"),
    "greek": ("el", "Σήμερα ο καιρός είναι καλός.", "γάτες, δύο ή τρεις!"),
    "chinese with english": ("zh", "用 Python 写一个 sort 函数", "Why buy fish? 猫咪睡觉"),
    "english with chinese": ("en", "The word 好 means good in Chinese", "Nobody buys fish at 猫 place"),
    "emoji": ("en", "👍 🎉 🐕 🏃 🌧", "😀 😴 🐟 🛒 ❄"),
    "punctuation": ("zh", "。 ， ！ ？", "； ： 、"),
}
NAMES = ["bleu", "chrf", "ter", "rouge", "exact_match", "token_f1"]
SPOKEN = {"bleu", "ter", "exact_match", "token_f1"}
"""Metrics with an option `lang`."""

every = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("script", SCRIPTS)
@every
def test_identical_text_scores_best_and_disjoint_text_worst(score, name, script):
    lang, text, other = SCRIPTS[script]
    other = "".join(character for character in other if character == " " or character.casefold() not in text.casefold())
    assert len(other.split()) >= 1
    assert not set(text.casefold()) & set(other.casefold()) - {" "}
    for options in [{}, {"lang": lang}] if name in SPOKEN else [{}]:
        same = score(name, [text], [text], **options)
        assert same == pytest.approx(dict.fromkeys(same, BEST.get(name, 1.0))), options
        apart = score(name, [text], [other], **options)
        if name == "ter":
            assert apart["ter"] >= 100.0, options
        else:
            assert apart == pytest.approx(dict.fromkeys(apart, 0.0)), options


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Cn"]), max_size=12).filter(str.strip))
@example("ـ")
@example("的")
@example("&amp; <skipped>")
@example("￼")
@every
def test_any_visible_text_is_its_own_best_answer(score, name, text):
    # BLEU ignores orders beyond a text's length, and ROUGE-2 of a text of one word is 0 by definition.
    scores = score(name, [text], [text], **({"effective_order": True} if name == "bleu" else {}))
    if len(tokenize_words(text)) == 1:
        scores.pop("rouge2", None)
    assert scores == pytest.approx(dict.fromkeys(scores, BEST.get(name, 1.0)))


@pytest.mark.parametrize(
    ("codes", "tokenizer"),
    [
        (("zh", "zho", "cmn", "yue"), "zh"),
        (("ja", "jpn", "ko", "kor", "th", "tha", "bo"), "char"),
        (("en", "eng"), "13a"),
    ],
)
def test_languages_have_codes_of_two_and_three_letters(metric, codes, tokenizer):
    assert {metric("bleu", lang=code).signature().partition("|tok:")[2].partition("|")[0] for code in codes} == {
        tokenizer
    }


def test_lang_overrides_the_script(score):
    text = "東京都知事選挙公報"  # Japanese, and nothing in it that is not Han
    assert score("bleu", [text], [text], lang="ja")["bleu"] == pytest.approx(100.0)
    mostly_latin = "Der Begriff 天下 heißt alles unter dem Himmel", "Der Begriff 天 heißt alles unter dem Himmel"
    for name in ("bleu", "ter"):
        by_script, chinese = (score(name, [mostly_latin[1]], [mostly_latin[0]], lang=lang) for lang in ("auto", "zh"))
        assert by_script != chinese, name
