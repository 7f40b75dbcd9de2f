"""The checks of instructions compared with lm-evaluation-harness's IFEval; `make oracle` installs it.

Its tokenizers of sentences and words need data that is downloaded. They are replaced by those of the same package that
need none: the untrained sentence tokenizer, and the Treebank word tokenizer.
"""

from __future__ import annotations

import itertools

import pytest
from harness_metrics.instruction_checks import PUBLISHED_CHECKS
from harness_metrics.instructions import Instructions

from harness import Item

pytestmark = pytest.mark.oracle
nltk = pytest.importorskip("nltk", reason="nltk is not installed; `make oracle` runs this")
pytest.importorskip("langdetect", reason="langdetect is not installed; `make oracle` runs this")
pytest.importorskip("lm_eval", reason="lm_eval is not installed; `make oracle` runs this")

ANSWERS = [
    "The river runs to the sea. It is long! Is it deep? Nobody knows, said Ann.",
    "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun",
    "THE RIVER RUNS TO THE SEA AND THE BOAT IS ON THE WATER",
    "* first point\n* second point\n- third point\n\nAnd that is the end of the list.",
    "**Bold** text and *italic* text, with [name] and [address].\n\nP.S. Bring the keys.",
    '"A quoted answer with the word river in it."',
    '```json\n{"name": "river", "length": 12}\n```',
    '{"name": "river", "length": }',
    "<<A title>>\nSection 1\nThe first part is here.\nSection 2\nThe second part is here.",
    "First paragraph is here.\n***\nSecond paragraph is here.",
    "Weather is what you get.\n\nClimate is what you expect.",
    "My first response is this one.******My second response is that one.",
    "******Only one response is here.******",
    "My answer is yes.",
    "Sure, here it is:\nMy answer is no.\nIs there anything else I can help with?",
    "Tell me about the river. The river is long and it runs to the sea. Hope this helps.",
    "Der Fluss ist lang und er fließt durch das ganze Land bis in das Meer, und das Wasser ist kalt.",
    "El río es muy largo y corre por todo el país hasta el mar, pero el agua está fría en la montaña.",
    "Le fleuve est long et il traverse tout le pays jusqu'à la mer, mais les eaux sont froides.",
    "这条河很长，从山里一直流到大海。河水很冷，但是孩子们喜欢在里面游泳。",
    "Река очень длинная, и она течёт через всю страну до моря. Вода холодная, но дети любят её.",
    "Річка дуже довга, і вона тече через усю країну до моря. Вода холодна, але діти її люблять.",
    "नदी बहुत लंबी है और यह पूरे देश से होकर समुद्र तक जाती है। पानी ठंडा है।",
    "اس دریا کی لمبائی بہت زیادہ ہے اور یہ پورے ملک سے گزرتا ہے۔ پانی ٹھنڈا ہے۔",
    "النهر طويل جدا وهو يجري في كل البلاد إلى البحر. الماء بارد ولكن الأطفال يحبون السباحة.",
    "川はとても長くて、山から海まで流れています。水は冷たいですが、子供たちは好きです。",
    "",
    "   \n",
]
LANGUAGES = ("en", "de", "es", "fr", "ru", "uk", "hi", "ur", "ar", "ja")
INSTRUCTIONS = {
    "keywords:existence": [{"keywords": ["river", "sea"]}, {"keywords": ["RIVER"]}, {"keywords": ["run"]}],
    "keywords:frequency": [
        {"keyword": "river", "frequency": 2, "relation": "at least"},
        {"keyword": "the", "frequency": 2, "relation": "less than"},
    ],
    "keywords:forbidden_words": [{"forbidden_words": ["river"]}, {"forbidden_words": ["run", "is"]}],
    "keywords:letter_frequency": [
        {"letter": "e", "let_frequency": 5, "let_relation": "at least"},
        {"letter": "S", "let_frequency": 4, "let_relation": "less than"},
    ],
    "language:response_language": [{"language": code} for code in LANGUAGES],
    "length_constraints:number_sentences": [
        {"num_sentences": 2, "relation": "at least"},
        {"num_sentences": 3, "relation": "less than"},
    ],
    "length_constraints:number_paragraphs": [{"num_paragraphs": 1}, {"num_paragraphs": 2}],
    "length_constraints:number_words": [
        {"num_words": 10, "relation": "at least"},
        {"num_words": 6, "relation": "less than"},
    ],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "weather"},
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Climate"},
        {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "weather"},
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": 1}, {"num_placeholders": 3}],
    "detectable_content:postscript": [{"postscript_marker": "P.S."}, {"postscript_marker": "P.P.S"}],
    "detectable_format:number_bullet_lists": [{"num_bullets": 2}, {"num_bullets": 3}],
    "detectable_format:constrained_response": [{}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": 1}, {"num_highlights": 3}],
    "detectable_format:multiple_sections": [
        {"section_spliter": "Section", "num_sections": 2},
        {"section_spliter": "Part", "num_sections": 1},
    ],
    "detectable_format:json_format": [{}],
    "detectable_format:title": [{}],
    "combination:two_responses": [{}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "Tell me about the river."}],
    "startend:end_checker": [
        {"end_phrase": "Hope this helps."},
        {"end_phrase": "is there anything else I can help with?"},
    ],
    "startend:quotation": [{}],
    "change_case:capital_word_frequency": [
        {"capital_frequency": 2, "capital_relation": "at least"},
        {"capital_frequency": 1, "capital_relation": "less than"},
    ],
    "change_case:english_capital": [{}],
    "change_case:english_lowercase": [{}],
    "punctuation:no_comma": [{}],
}  # fmt: skip
CASES = [(name, arguments) for name, all_arguments in INSTRUCTIONS.items() for arguments in all_arguments]
DIFFERENCES = {
    "punctuation:no_comma": "，",
    "length_constraints:number_sentences": "。|P.S.",
    "language:response_language": '{"name"',
}
"""Instruction type -> texts that both judge differently: full-width marks count here, `P.S.` ends no sentence, and
a few words without a frequent one are of no language, where IFEval's detector guesses one."""


def judged_differently(name, answer):
    return any(text in answer for text in DIFFERENCES.get(name, "").split("|") if text)


@pytest.fixture(scope="module")
def ifeval():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nltk, "download", lambda *args, **options: True)
        words = nltk.tokenize.NLTKWordTokenizer()
        patch.setattr(nltk, "word_tokenize", words.tokenize)
        from lm_eval.tasks.ifeval import instructions_util, utils

        sentences = nltk.tokenize.punkt.PunktSentenceTokenizer()
        patch.setattr(instructions_util, "_get_sentence_tokenizer", lambda: sentences)
        yield utils


def test_every_published_type_is_compared(ifeval):
    from lm_eval.tasks.ifeval import instructions_registry

    assert set(PUBLISHED_CHECKS) == set(INSTRUCTIONS) == set(instructions_registry.INSTRUCTION_DICT)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_each_check_agrees_with_ifeval(ifeval, name):
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0
    verdicts = set()
    for arguments, answer in itertools.product(INSTRUCTIONS[name], ANSWERS):
        if judged_differently(name, answer):
            continue
        document = {"key": 1, "prompt": "", "instruction_id_list": [name], "kwargs": [arguments]}
        theirs = ifeval.process_results(document, [answer])
        ours = Instructions().statistics(Item("a", "", "", answer, data=document))
        pairs = {
            "instruction_prompt": "prompt_level_strict_acc",
            "instruction_prompt_loose": "prompt_level_loose_acc",
        }
        assert {our: ours[our][0] for our in pairs} == {our: float(theirs[their]) for our, their in pairs.items()}, (
            answer
        )
        verdicts.add(theirs["prompt_level_strict_acc"])
    assert verdicts == {True, False}, "the answers do not distinguish it"


def test_prompts_of_several_instructions_agree(ifeval):
    for first, second in itertools.pairwise(CASES):
        ids, kwargs = [first[0], second[0]], [first[1], second[1]]
        document = {"key": 1, "prompt": "", "instruction_id_list": ids, "kwargs": kwargs}
        for answer in ANSWERS[:16]:
            if judged_differently(first[0], answer) or judged_differently(second[0], answer):
                continue
            theirs = ifeval.process_results(document, [answer])
            ours = Instructions().statistics(Item("a", "", "", answer, data=document))
            assert ours["instruction_prompt"] == (float(theirs["prompt_level_strict_acc"]), 1.0)
            assert ours["instruction_single"] == (float(sum(theirs["inst_level_strict_acc"])), 2.0)
            assert ours["instruction_prompt_loose"] == (float(theirs["prompt_level_loose_acc"]), 1.0)
            assert ours["instruction_single_loose"] == (float(sum(theirs["inst_level_loose_acc"])), 2.0)
