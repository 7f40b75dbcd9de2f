"""What a conversation says, as text that can be compared: what its words are, in every script.

Knows scripts with and without spaces between words; knows no tokenizer, since wording is compared, not tokens.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from harness.types import Example, Message

UNSPACED_SCRIPT_RANGES = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c"
    "\u3040-\u312f\u3130-\u318f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\uff66-\uffdc\U0001aff0-\U0001b16f\U00020000-\U000323af"
)
"""Han, kana, Thai, Lao, Khmer and Burmese, which put no spaces between words, and Hangul, whose spaces are left out at
will, as ranges of a regular expression. Each of their characters counts as a word."""


def _combining_mark_ranges() -> str:
    # `\w` leaves combining marks out, which would cut the words of Indic scripts at every vowel sign.
    codes = [code for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M"]
    starts = [code for code in codes if code - 1 not in set(codes)]
    ends = [code for code in codes if code + 1 not in set(codes)]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


COMBINING_MARKS = _combining_mark_ranges()
WORD_PATTERN = re.compile(
    rf"(?:(?![{COMBINING_MARKS}])[{UNSPACED_SCRIPT_RANGES}])[{COMBINING_MARKS}]*|(?:[^\W_{UNSPACED_SCRIPT_RANGES}]|(?![{UNSPACED_SCRIPT_RANGES}])[{COMBINING_MARKS}])+"
)
ASCII_WORD_PATTERN = re.compile("[a-z0-9]+")
UNSPACED_CHARACTER_PATTERN = re.compile(rf"[{UNSPACED_SCRIPT_RANGES}]")
LINE_BREAK_CONTROLS = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")


def split_words(text: str) -> list[str]:
    """The words of a text: case folded, composed (NFC), without punctuation; a character of an unspaced script is one.

    A text of nothing but signs (`:-)`, an emoji) is taken by its characters, so that only a blank text has no words.
    """
    text = normalize_case(text)
    pattern = ASCII_WORD_PATTERN if text.isascii() else WORD_PATTERN  # the same words, four times as fast
    return pattern.findall(text) or [character for character in text if not character.isspace()]


def normalize_case(text: str) -> str:
    """The text case folded and composed, without characters that only say where a line may break."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", LINE_BREAK_CONTROLS.sub("", unicodedata.normalize("NFC", text)).casefold())


def is_unspaced_script(words: Sequence[str]) -> bool:
    """Whether more than half of the words are characters of scripts that are written without spaces."""
    return 2 * sum(1 for word in words if not word.isascii() and UNSPACED_CHARACTER_PATTERN.match(word)) > len(words)


def original_text_of_words(text: str, begin: int, end: int) -> str:
    """The part of a text that holds its words `begin` to `end` (exclusive), as it is written there."""
    for one in (LINE_BREAK_CONTROLS.sub("", unicodedata.normalize("NFC", text)), normalize_case(text)):
        places = [match.span() for match in WORD_PATTERN.finditer(one)]
        if len(places) >= end and len(places) == len(split_words(text)):
            return one[places[begin][0] : places[end - 1][1]]
    return " ".join(split_words(text)[begin:end])


def conversation_text(messages: Iterable[Message]) -> str:
    """All that messages say, one below the other: contents, inputs, and the arguments of calls."""
    return "\n".join(part for message in messages for part in _message_texts(message))


def _message_texts(message: Message) -> Iterator[str]:
    yield message.content
    if message.input:
        yield message.input
    for call in message.tool_calls:
        yield f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}"


def is_plain_text(example: Example) -> bool:
    """Whether a row is a plain text and no conversation."""
    return example.messages[0].role == "text"


def prompt_messages(example: Example) -> tuple[Message, ...]:
    """What comes before the response; nothing, for a plain text."""
    return example.messages[:-1]


def earlier_trained_prompts(example: Example) -> Iterator[tuple[Message, ...]]:
    """What comes before each response that is trained, but for the last one."""
    for index, message in enumerate(example.messages[:-1]):
        if message.role == "assistant" and message.train:
            yield example.messages[:index]


def response_message(example: Example) -> Message:
    """The last message: the response, or the plain text itself."""
    return example.messages[-1]
