"""Checks of verifiable instructions, such as a number of words or a forbidden word.

Names and arguments are those of IFEval (Zhou et al., 2023, arXiv:2311.07911), so that its published prompts can be
used. What each of them requires follows the paper and the behavior of lm-evaluation-harness; the tests compare the two.
`ADDED_CHECKS` has further ones, mostly for Chinese.
"""

from __future__ import annotations

import inspect
import json
import operator
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from harness import HarnessError
from harness.utils.json_depth import load_json
from harness_metrics.language_detection import UNDECIDED, detect_language, main_script

Check = Callable[..., bool]

_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "less than": operator.lt,
    "at least": operator.ge,
    "at most": operator.le,
    "more than": operator.gt,
    "exactly": operator.eq,
}
"""The words for a comparison. IFEval has the first two."""

_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=[\s*]|$)|[。！？…]+[”’」』）]*""")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|e\.g|i\.e|etc|approx|No)|\b[A-Z])\.$")


def compare(count: int, relation: str, bound: int) -> bool:
    """Return whether a count has a relation to a bound.

    Raises:
        ValueError: The relation is unknown.
    """
    if relation not in _RELATIONS:
        raise ValueError(f"the relation {relation!r} is not one of: {', '.join(_RELATIONS)}")
    return _RELATIONS[relation](count, bound)


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text. Only punctuation ends a sentence, and that of common abbreviations does not."""
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[start : match.end()]):
            sentences.append(text[start : match.end()])
            start = match.end()
    sentences.append(text[start:])
    return [sentence.strip() for sentence in sentences if sentence.strip()]


# -- keywords ---------------------------------------------------------------------------------------------------------


def has_keywords(answer: str, keywords: Sequence[str]) -> bool:
    """Return whether every keyword occurs, in any case. A keyword is a regular expression, as in IFEval."""
    return all(_search(keyword, answer) for keyword in keywords)


def has_keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    """Return whether the keyword occurs often enough, in any case."""
    return compare(len(_compile(keyword).findall(answer)), relation, frequency)


def lacks_forbidden_words(answer: str, forbidden_words: Sequence[str]) -> bool:
    """Return whether no forbidden word occurs as a whole word; in scripts without spaces, whether it does not occur."""
    return not any(
        _search(rf"\b{word}\b" if word.isascii() else word, answer, fallback=word) for word in forbidden_words
    )


def has_letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Return whether the letter occurs often enough, in any case."""
    return compare(answer.lower().count(letter.lower()), let_relation, let_frequency)


def lacks_characters(answer: str, characters: str) -> bool:
    """Return whether none of the characters occurs, e.g. no punctuation mark of a list."""
    return not set(answer) & set(characters)


# -- language and case ------------------------------------------------------------------------------------------------


def is_in_language(answer: str, language: str) -> bool:
    """Return whether the answer is in the language (ISO 639-1); an answer without letters counts as right.

    That is so in IFEval, where the detector fails for a text without letters. An answer whose language is undecided
    does not count.
    """
    detected = detect_language(answer)
    return detected is None or detected == language


def may_be_english(answer: str) -> bool:
    """Return whether the answer is English, or in Latin letters of an undecided language."""
    language = detect_language(answer)
    return language in (None, "en") or (language == UNDECIDED and main_script(answer) == "LATIN")


def is_uppercase(answer: str) -> bool:
    """Return whether the answer is in capital letters and in no other language than English."""
    return answer.isupper() and may_be_english(answer.lower())


def is_lowercase(answer: str) -> bool:
    """Return whether the answer is in small letters and in no other language than English."""
    return answer.islower() and may_be_english(answer)


def has_capital_word_frequency(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    """Return whether enough words are in capital letters alone."""
    words = re.findall(r"[^\W_]+(?:[-'’.&/][^\W_]+)*", answer)
    return compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


# -- length -----------------------------------------------------------------------------------------------------------


def has_sentence_count(answer: str, num_sentences: int, relation: str) -> bool:
    """Return whether the number of sentences is right."""
    return compare(len(split_sentences(answer)), relation, num_sentences)


def has_word_count(answer: str, num_words: int, relation: str) -> bool:
    r"""Return whether the number of words, runs of `\w`, is right. Use `number_characters` for Chinese."""
    return compare(len(re.findall(r"\w+", answer)), relation, num_words)


def has_character_count(answer: str, num_characters: int, relation: str) -> bool:
    """Return whether the number of characters is right: letters and digits, without punctuation and white space."""
    return compare(sum(unicodedata.category(c)[0] in "LN" for c in answer), relation, num_characters)


def has_paragraph_count(answer: str, num_paragraphs: int) -> bool:
    """Return whether there are so many paragraphs, separated by `***`; none of them may be empty."""
    paragraphs = _between_separators(re.split(r"\s?\*\*\*\s?", answer))
    return paragraphs is not None and len(paragraphs) == num_paragraphs


def has_first_word_of_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Return whether there are so many paragraphs, separated by blank lines, and one begins with a word."""
    paragraphs = answer.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if nth_paragraph > count or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"').lower()
    return count == num_paragraphs and re.split(r"""[.,?!'"]""", word)[0] == first_word.lower()


def has_line_count(answer: str, num_lines: int, relation: str) -> bool:
    """Return whether the number of lines that are not blank is right."""
    return compare(sum(bool(line.strip()) for line in answer.splitlines()), relation, num_lines)


# -- content and format -----------------------------------------------------------------------------------------------


def has_placeholders(answer: str, num_placeholders: int) -> bool:
    """Return whether there are at least so many placeholders in square brackets, such as [name]."""
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def has_postscript(answer: str, postscript_marker: str) -> bool:
    """Return whether a postscript follows its marker; spaces within `P.S.` and `P.P.S` are allowed."""
    patterns = {"P.P.S": r"p\.\s?p\.\s?s.*$", "P.S.": r"p\.\s?s\..*$"}
    pattern = patterns.get(postscript_marker, re.escape(postscript_marker.lower()))
    return re.search(pattern, answer.lower(), re.MULTILINE) is not None


def has_bullet_count(answer: str, num_bullets: int) -> bool:
    """Return whether exactly so many lines begin with `*` or `-`."""
    stars = re.findall(r"^\s*\*[^\*].*$", answer, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def has_numbered_count(answer: str, num_items: int) -> bool:
    """Return whether the lines that begin with a number are exactly 1, 2, … up to `num_items`."""
    numbers = re.findall(r"^\s*(\d+)\s?[.)、．：:]", answer, re.MULTILINE)
    return [int(number) for number in numbers] == list(range(1, num_items + 1))


def is_constrained_response(answer: str) -> bool:
    """Return whether one of IFEval's three answers (My answer is yes / no / maybe.) occurs."""
    return any(f"My answer is {word}." in answer for word in ("yes", "no", "maybe"))


def is_one_of(answer: str, options: Sequence[str]) -> bool:
    """Return whether the answer is one of the options and nothing else."""
    return answer.strip() in options


def has_highlights(answer: str, num_highlights: int) -> bool:
    """Return whether there are at least so many highlighted sections, *such as this* or **this**."""
    single = re.findall(r"\*[^\n\*]*\*", answer)
    double = re.findall(r"\*\*[^\n\*]*\*\*", answer)
    return sum(bool(section.strip("*").strip()) for section in [*single, *double]) >= num_highlights


def has_sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    """Return whether there are at least so many sections, each after a word and a number, e.g. `Section 1`."""
    return len(re.findall(rf"\s?{section_spliter}\s?\d+\s?", answer)) >= num_sections


def is_json(answer: str) -> bool:
    """Return whether the answer is JSON, alone or in one Markdown code fence."""
    return _json_of(answer) is not None


def has_json_keys(answer: str, keys: Sequence[str]) -> bool:
    """Return whether the answer is one JSON object with exactly these keys."""
    value = _json_of(answer)
    return value is not None and isinstance(value[0], dict) and set(value[0]) == set(keys)


def has_title(answer: str) -> bool:
    """Return whether there is a title in double angular brackets, such as <<joy>>."""
    return any(title.lstrip("<").rstrip(">").strip() for title in re.findall(r"<<[^\n]+>>", answer))


# -- combinations, start and end, punctuation -------------------------------------------------------------------------


def has_two_responses(answer: str) -> bool:
    """Return whether there are two different responses, separated by six asterisks."""
    responses = _between_separators(answer.split("******"))
    return responses is not None and len(responses) == 2 and responses[0].strip() != responses[1].strip()


def repeats_prompt(answer: str, prompt_to_repeat: str) -> bool:
    """Return whether the answer begins with the prompt, in any case."""
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(answer: str, end_phrase: str) -> bool:
    """Return whether the answer ends with the phrase, in any case; closing quotation marks do not count."""
    return answer.strip().strip('"”」').lower().endswith(end_phrase.strip().lower())


def starts_with(answer: str, start_phrase: str) -> bool:
    """Return whether the answer begins with the phrase, in any case; opening quotation marks do not count."""
    return answer.strip().strip('"“「').lower().startswith(start_phrase.strip().lower())


def is_quoted(answer: str) -> bool:
    """Return whether the answer is between double quotation marks; “…”, 「…」 and «…» count as well."""
    text = answer.strip()
    return len(text) > 1 and (text[0], text[-1]) in (('"', '"'), ("“", "”"), ("「", "」"), ("«", "»"))


def lacks_commas(answer: str) -> bool:
    """Return whether there is no comma, neither `,` nor the full-width `，`."""
    return "," not in answer and "，" not in answer


PUBLISHED_CHECKS: Mapping[str, Check] = {
    "keywords:existence": has_keywords,
    "keywords:frequency": has_keyword_frequency,
    "keywords:forbidden_words": lacks_forbidden_words,
    "keywords:letter_frequency": has_letter_frequency,
    "language:response_language": is_in_language,
    "length_constraints:number_sentences": has_sentence_count,
    "length_constraints:number_paragraphs": has_paragraph_count,
    "length_constraints:number_words": has_word_count,
    "length_constraints:nth_paragraph_first_word": has_first_word_of_paragraph,
    "detectable_content:number_placeholders": has_placeholders,
    "detectable_content:postscript": has_postscript,
    "detectable_format:number_bullet_lists": has_bullet_count,
    "detectable_format:constrained_response": is_constrained_response,
    "detectable_format:number_highlighted_sections": has_highlights,
    "detectable_format:multiple_sections": has_sections,
    "detectable_format:json_format": is_json,
    "detectable_format:title": has_title,
    "combination:two_responses": has_two_responses,
    "combination:repeat_prompt": repeats_prompt,
    "startend:end_checker": ends_with,
    "startend:quotation": is_quoted,
    "change_case:capital_word_frequency": has_capital_word_frequency,
    "change_case:english_capital": is_uppercase,
    "change_case:english_lowercase": is_lowercase,
    "punctuation:no_comma": lacks_commas,
}
"""IFEval's instruction type -> its check."""

ADDED_CHECKS: Mapping[str, Check] = {
    "keywords:forbidden_characters": lacks_characters,
    "length_constraints:number_characters": has_character_count,
    "length_constraints:number_lines": has_line_count,
    "detectable_format:number_numbered_lists": has_numbered_count,
    "detectable_format:one_of": is_one_of,
    "detectable_format:json_keys": has_json_keys,
    "startend:start_checker": starts_with,
}
"""Instruction types that IFEval does not have."""

CHECKS: Mapping[str, Check] = {**PUBLISHED_CHECKS, **ADDED_CHECKS}


def bind_checks(where: str, ids: Any, arguments: Any) -> list[Callable[[str], bool]]:
    """Return the checks of one prompt, each a function of the answer.

    Args:
        where: The item, for errors.
        ids: The instruction types, `instruction_id_list`.
        arguments: The arguments of each, `kwargs`; null arguments are ignored.

    Raises:
        HarnessError: A type or an argument is unknown or missing.
    """
    if not isinstance(ids, list) or not ids or not isinstance(arguments, list) or len(ids) != len(arguments):
        what = "has no 'instruction_id_list' and 'kwargs' of the same length"
        raise HarnessError(where, what, 'give its source "keep": ["instruction_id_list", "kwargs"]')
    return [_bind_check(where, name, own or {}) for name, own in zip(ids, arguments, strict=True)]


def _bind_check(where: str, name: Any, arguments: Mapping[str, Any]) -> Callable[[str], bool]:
    if name not in CHECKS:
        near = get_close_matches(str(name), CHECKS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known types: {', '.join(CHECKS)}"
        raise HarnessError(where, f"has the unknown instruction type {name!r}", hint)
    check = CHECKS[name]
    _, *names = inspect.signature(check).parameters
    given = {key: value for key, value in arguments.items() if value is not None}
    for key in {*names} ^ {*given}:
        problem = "lacks the argument" if key in names else "has the unknown argument"
        raise HarnessError(where, f"{problem} {key!r} of {name!r}", f"its arguments are: {', '.join(names) or 'none'}")

    def check_answer(answer: str) -> bool:
        try:
            return bool(answer.strip()) and check(answer, **given)
        except (TypeError, ValueError, AttributeError) as error:
            raise HarnessError(where, f"has an argument of {name!r} that is not usable: {error}", "fix it") from error

    return check_answer


def loose_variants(answer: str) -> Iterator[str]:
    """Yield the variants of an answer that IFEval's loose accuracy accepts.

    They are: without the first line, the last one, or both, which are often introductions, and without asterisks.
    """
    lines = answer.split("\n")
    for variant in (answer, "\n".join(lines[1:]), "\n".join(lines[:-1]), "\n".join(lines[1:-1])):
        text = variant if variant is answer else variant.strip()
        yield text
        yield text.replace("*", "")


def _between_separators(parts: Sequence[str]) -> Sequence[str] | None:
    """Return the texts between separators, without an empty first and last one; None if another one is empty."""
    kept = [part for index, part in enumerate(parts) if part.strip() or 0 < index < len(parts) - 1]
    return kept if all(part.strip() for part in kept) else None


def _json_of(answer: str) -> tuple[Any] | None:
    text = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        return (load_json(text.removesuffix("```").strip(), json.JSONDecoder()),)
    except ValueError:
        return None


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error:  # a keyword such as `C++`
        return re.compile(re.escape(pattern), re.IGNORECASE)


def _search(pattern: str, text: str, fallback: str | None = None) -> bool:
    try:
        return re.search(pattern, text, re.IGNORECASE) is not None
    except re.error:
        return re.search(re.escape(fallback or pattern), text, re.IGNORECASE) is not None
