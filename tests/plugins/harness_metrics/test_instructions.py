"""The checks of instructions; `test_instructions_oracle.py` compares the published ones with IFEval."""

from __future__ import annotations

import pytest
from harness_metrics.instruction_checks import CHECKS, split_sentences
from harness_metrics.language_detection import detect_language

from harness import HarnessError, Item


def item(answer, *instructions):
    ids, arguments = [name for name, _ in instructions], [given for _, given in instructions]
    return Item("a", "", "", answer, data={"instruction_id_list": ids, "kwargs": arguments})


@pytest.mark.parametrize(
    ("name", "arguments", "followed", "broken"),
    [
        ("keywords:existence", {"keywords": ["玫瑰", "长椅"]}, "长椅旁边有玫瑰", "长椅"),
        ("keywords:forbidden_words", {"forbidden_words": ["锁"]}, "钥匙", "门锁"),
        ("keywords:existence", {"keywords": ["(a"]}, "see (a) here", "see a here"),
        ("keywords:forbidden_characters", {"characters": "!?"}, "Fine.", "Fine!"),
        (
            "length_constraints:number_characters",
            {"num_characters": 4, "relation": "at most"},
            "天气，很好！",
            "天气很好吗",
        ),
        ("length_constraints:number_words", {"num_words": 2, "relation": "exactly"}, "two words", "three of them"),
        ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "exactly"}, "好。很好！", "好"),
        ("length_constraints:number_lines", {"num_lines": 2, "relation": "exactly"}, "a\n\nb\n", "a\nb\nc"),
        ("length_constraints:number_words", {"num_words": 2, "relation": "more than"}, "one two three", "one two"),
        ("detectable_format:number_numbered_lists", {"num_items": 2}, "1. a\n2、b", "1. a\n3. b"),
        ("detectable_format:one_of", {"options": ["是", "不是"]}, " 不是\n", "不是的"),
        ("detectable_format:json_keys", {"keys": ["a", "b"]}, '```json\n{"b": 1, "a": 2}\n```', '{"a": 1}'),
        ("detectable_content:postscript", {"postscript_marker": "附言："}, "好\n附言：再见", "好"),
        ("startend:start_checker", {"start_phrase": "你知道吗"}, "“你知道吗？", "知道"),
        ("startend:quotation", {}, "“好”", "“好"),
        ("punctuation:no_comma", {}, "a。b、c", "a，b"),
        ("language:response_language", {"language": "zh"}, "今天天气很好。", "The weather is fine."),
        ("language:response_language", {"language": "en"}, "The cat sleeps.", "Vienna"),
        ("language:response_language", {"language": "es"}, "12 + 3 = 15", "Buenas noches"),
        ("language:response_language", {"language": "ru"}, "Это не так.", "Москва"),
        ("change_case:english_capital", {}, "VIENNA", "WIEN IST DIE HAUPTSTADT VON ÖSTERREICH"),
        ("change_case:english_capital", {}, "THE CAPITAL IS VIENNA.", "МОСКВА"),
        ("change_case:english_lowercase", {}, "bread", "im sommer ist das wetter warm"),
    ],
)  # fmt: skip
def test_what_a_check_requires(metric, name, arguments, followed, broken):
    instance = metric("instructions")
    assert instance.statistics(item(followed, (name, arguments)))["instruction_prompt"] == (1.0, 1.0)
    assert instance.statistics(item(broken, (name, arguments)))["instruction_prompt"] == (0.0, 1.0)
    assert instance.statistics(item("", (name, arguments)))["instruction_prompt_loose"] == (0.0, 1.0)


def test_prompts_and_instructions_are_counted_strictly_and_loosely(metric):
    both = (
        ("punctuation:no_comma", {}),
        ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}),
    )
    statistics = metric("instructions").statistics(item("Sure, here it is:\nTwo words", *both))
    assert statistics == {
        "instruction_prompt": (0.0, 1.0),
        "instruction_single": (0.0, 2.0),
        "instruction_prompt_loose": (1.0, 1.0),
        "instruction_single_loose": (2.0, 2.0),
    }


def test_null_arguments_of_a_published_row_are_ignored(metric):
    arguments = {"num_words": 2, "relation": "at least", "keywords": None, "language": None}
    answer = item("two words", ("length_constraints:number_words", arguments))
    assert metric("instructions").statistics(answer)["instruction_single"] == (1.0, 1.0)


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ([("keywords:exist", {})], "unknown instruction type 'keywords:exist'; did you mean 'keywords:existence'"),
        ([("keywords:existence", {})], "lacks the argument 'keywords'"),
        ([("punctuation:no_comma", {"commas": 1})], "unknown argument 'commas'"),
        ([("length_constraints:number_words", {"num_words": 2, "relation": "about"})], "the relation 'about' is not"),
        ([("length_constraints:number_words", {"num_words": "2", "relation": "at least"})], "is not usable"),
        ([], "no 'instruction_id_list' and 'kwargs'"),
    ],
)
def test_a_wrong_instruction_is_an_error_of_its_item(metric, instructions, message):
    with pytest.raises(HarnessError, match="item a") as error:
        metric("instructions").statistics(item("an answer", *instructions))
    assert message in str(error.value)


def test_sentences_end_at_punctuation_of_english_and_chinese():
    text = "Dr. Lee met Mr. Poe at 3.5 km. They left! “真的吗？”他问。好"
    assert split_sentences(text) == ["Dr. Lee met Mr. Poe at 3.5 km.", "They left!", "“真的吗？”", "他问。", "好"]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "a bridge lets people and cars cross a river or a road."),
        ("de", "Im Sommer ist das Wetter warm und die Sonne scheint."),
        ("fr", "Les chats mangent de la viande et du poisson."),
        ("es", "El cielo es azul y no hay nubes."),
        ("it", "La mattina molti italiani bevono il caffè e non il tè."),
        ("pt", "O céu é azul e as nuvens não são muito altas."),
        ("zh", "今天天气很好。"),
        ("ja", "今日は天気がいいです。"),
        ("ko", "오늘은 날씨가 좋습니다."),
        ("ru", "Это был очень тёплый день."),
        ("uk", "Це був дуже теплий день, і ми їхали."),
        ("ar", "الطقس جميل في هذا اليوم."),
        ("fa", "این یک روز خوب است و هوا گرم می شود."),
        ("hi", "यह एक अच्छा दिन है।"),
        ("th", "วันนี้อากาศดี"),
        (None, "123 !"),
        ("?", "Vienna"),
        ("?", "la casa"),
        ("?", "Москва"),
        ("?", "ᚠᚢᚦ"),
        ("en", "How good are these many people?"),
    ],
)
def test_the_language_of_a_sentence(language, text):
    assert detect_language(text) == language


def test_every_check_has_a_type_and_a_name():
    assert len(CHECKS) == 32
    assert all(name.count(":") == 1 for name in CHECKS)
