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
    base answer of a general suite.

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
    """Yield words of at least 3 letters; in scripts written without spaces, each pair of neighboring characters."""
    words = split_words(text)
    pattern = unspaced_character_pattern()
    is_character = [bool(pattern.match(word)) for word in words]
    for word, single in zip(words, is_character, strict=True):
        if not single and len(word) >= MIN_WORD_LENGTH:
            yield word
    for pair, singles in zip(pairwise(words), pairwise(is_character), strict=True):
        if all(singles):
            yield "".join(pair)
