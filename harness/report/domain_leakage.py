"""Words of the domain that turn up in general answers after training, and did not before."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.types import Evaluation
from harness.utils.words import split_words, unspaced_character_pattern

MIN_DOMAIN_ITEMS = 2
"""Number of domain items in which a word of the domain must occur."""
MIN_WORD_LENGTH = 3
MAX_WORDS = 20

_ENGLISH_WORDS = """
the and but nor for yet not none nothing never neither either both each every all any some such same other others this
that these those here there where when why how what which who whom whose you your yours yourself she her hers herself
him his himself its itself they them their theirs themselves our ours ourselves mine myself one ones are was were been
being have has had having does did doing done can could may might must shall should will would about above across
after again against along among around before behind below beneath beside between beyond down during from into near
off onto out over past since through throughout toward towards under until upon with within without because while
although though unless whether than then thus hence else only also too very just more most less least much many few
several enough even still already always often once soon now quite rather perhaps maybe however therefore instead per
via don doesn didn isn aren wasn weren hasn haven hadn won wouldn shouldn couldn mustn let yes
"""
ENGLISH_FUNCTION_WORDS = frozenset(_ENGLISH_WORDS.split())
"""Words of English grammar with 3 letters or more, also the first part of a contraction. They are of no domain."""

CHINESE_FUNCTION_CHARACTERS = frozenset("的了着吗呢吧啊呀么是很也都我你您他她它们这那哪谁什怎不没在有和把被")
"""Characters of Chinese grammar: particles, pronouns, negations and their like. A pair with one is of no domain."""


@dataclass(frozen=True)
class LeakedWord:
    """A word of the domain in general answers.

    Attributes:
        word: The word, case folded.
        count: Number of general answers that contain it after training.
        items: (suite, id) of these answers.
        answers: Number of all general answers after training; suites that generate none do not count. 0: not known.
    """

    word: str
    count: int
    items: tuple[tuple[str, str], ...]
    answers: int = 0


def find_leaked_words(
    before: Sequence[Evaluation], after: Sequence[Evaluation], roles: Mapping[str, str]
) -> tuple[LeakedWord, ...]:
    """Find words of the domain in answers to general questions.

    A word of the domain occurs in the prompt or reference of at least two domain items, and in no prompt, reference or
    base answer of a general suite. It is not a word of grammar, such as "not" or "的".

    Args:
        before: The evaluations of the base model.
        after: The evaluations after the last stage.
        roles: Suite -> role.

    Returns:
        The words, the most frequent first, at most `MAX_WORDS`.
    """
    domain_counts = Counter(
        word
        for evaluation in after
        if roles.get(evaluation.suite) == "domain"
        for item in evaluation.items
        for word in set(_terms(f"{item.prompt}\n{item.reference}"))
    )
    general_before = [evaluation for evaluation in before if roles.get(evaluation.suite) == "general"]
    general_words = {
        word
        for evaluation in general_before
        for item in evaluation.items
        for word in _terms("\n".join((item.prompt, item.reference, item.answer or "")))
    }
    domain_words = {word for word, count in domain_counts.items() if count >= MIN_DOMAIN_ITEMS} - general_words
    answered = [
        (evaluation.suite, item.id, item.answer)
        for evaluation in after
        if roles.get(evaluation.suite) == "general"
        for item in evaluation.items
        if item.answer is not None
    ]
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for suite, item_id, answer in answered:
        for word in domain_words.intersection(_terms(answer)):
            found[word].append((suite, item_id))
    leaked = [LeakedWord(word, len(items), tuple(items), len(answered)) for word, items in found.items()]
    return tuple(sorted(leaked, key=lambda each: (-each.count, each.word))[:MAX_WORDS])


def _terms(text: str) -> Iterator[str]:
    """Yield words of at least 3 letters; in scripts written without spaces, each pair of neighboring characters.

    Words and characters of grammar are left out.
    """
    words = split_words(text)
    pattern = unspaced_character_pattern()
    is_character = [bool(pattern.match(word)) for word in words]
    for word, single in zip(words, is_character, strict=True):
        if not single and len(word) >= MIN_WORD_LENGTH and word not in ENGLISH_FUNCTION_WORDS:
            yield word
    for pair, singles in zip(pairwise(words), pairwise(is_character), strict=True):
        if all(singles) and CHINESE_FUNCTION_CHARACTERS.isdisjoint(pair):
            yield "".join(pair)
