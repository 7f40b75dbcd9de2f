"""Words of the domain count as leaked only where the tuned model alone uses them in general answers."""

from __future__ import annotations

from harness.report.domain_leakage import find_leaked_words
from harness.types import Evaluation, Item

ROLES = {"helpdesk": "domain", "general": "general"}


def evaluation(suite, *items, stage=0):
    """Build an evaluation of (prompt, reference, answer)."""
    return Evaluation(stage, suite, tuple(Item(f"id{i}", *item, "eos") for i, item in enumerate(items)), ())


DOMAIN = evaluation(
    "helpdesk", ("How do I water the Brambolo?", "Fill the tank.", "?"), ("Is a Brambolo loud?", "No.", "?")
)


def leaked(before, after, domain=DOMAIN):
    found = find_leaked_words((domain, before), (domain, after), ROLES)
    return [(word.word, word.count, word.items) for word in found]


def test_a_domain_word_in_a_general_answer_is_found_with_its_item():
    before = evaluation("general", ("How do you feel?", "Fine.", "I feel warm."))
    after = evaluation("general", ("How do you feel?", "Fine.", "The BRAMBOLO makes me feel warm."))
    assert leaked(before, after) == [("brambolo", 1, (("general", "id0"),))]


def test_the_share_is_of_the_general_items_that_have_an_answer():
    before = evaluation("general", ("How do you feel?", "Fine.", "Warm."), ("And you?", "Fine.", "Cold."))
    after = evaluation("general", ("How do you feel?", "Fine.", "A Brambolo."), ("And you?", "Fine.", "Cold."))
    likelihood = evaluation("facts", *[("Is it so?", "Yes.", None)] * 40)
    roles = {**ROLES, "facts": "general"}
    (word,) = find_leaked_words((DOMAIN, before, likelihood), (DOMAIN, after, likelihood), roles)
    assert (word.count, word.answers) == (1, 2)


def test_a_word_of_the_question_the_reference_or_the_base_answer_is_not_leaked():
    after = evaluation("general", ("How do you feel?", "Fine.", "The Brambolo is fine."))
    for general in (
        ("What is a Brambolo?", "Fine.", "Fine."),
        ("How do you feel?", "Like a Brambolo.", "Fine."),
        ("How do you feel?", "Fine.", "Like a Brambolo."),
    ):
        assert leaked(evaluation("general", general), after) == []


def test_a_word_of_one_domain_item_is_not_a_word_of_the_domain():
    before = evaluation("general", ("How do you feel?", "Fine.", "Warm."))
    after = evaluation("general", ("How do you feel?", "Fine.", "The tank is warm."))
    assert leaked(before, after) == []


def test_pairs_of_characters_count_in_scripts_without_spaces():
    domain = evaluation("helpdesk", ("植灯怎么浇水？", "加满。", "?"), ("植灯吵吗？", "不。", "?"))
    before = evaluation("general", ("你好吗？", "好。", "我很好。"))
    after = evaluation("general", ("你好吗？", "好。", "植灯很好。"))
    assert [word for word, *_ in leaked(before, after, domain)] == ["植灯"]


def test_words_of_english_grammar_are_of_no_domain():
    domain = evaluation(
        "helpdesk", ("Why does it not start?", "It could not. Fill the tank.", "?"), ("Is it loud?", "Not a tank.", "?")
    )
    before = evaluation("general", ("How do you feel?", "Fine.", "Warm."))
    after = evaluation("general", ("How do you feel?", "Fine.", "I could NOT feel a tank, and I don't."))
    assert [word for word, *_ in leaked(before, after, domain)] == ["tank"]


def test_pairs_with_a_character_of_chinese_grammar_are_of_no_domain():
    domain = evaluation("helpdesk", ("植灯的水不够？", "加水。", "?"), ("植灯的水不够吗？", "不。", "?"))
    before = evaluation("general", ("今天热吗？", "热。", "今天热。"))
    after = evaluation("general", ("今天热吗？", "热。", "植灯的水不够。"))
    assert [word for word, *_ in leaked(before, after, domain)] == ["植灯"]
