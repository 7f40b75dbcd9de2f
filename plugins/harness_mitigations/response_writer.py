"""Rows that the model itself writes, filtered: responses to prompts of the data, or prompts and responses.

A model forgets less by its own responses than by those of others, which have low probability under it: "self-generated"
data (Huang et al., 2024, arXiv:2403.01244) and the base model's answers to general prompts (arXiv:2605.26097). From the
header of a user's turn alone, a model trained on conversations also writes prompts (Magpie, Xu et al., 2024,
arXiv:2406.08464).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness import Example, HarnessError, InvalidRecord, Message, PromptRows, WrittenPrompt, WrittenResponse
from harness.utils.words import split_words

WRITING_PROPERTIES: dict[str, Any] = {
    "prompts": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Maximum number of prompts of a source, chosen by the seed; null: all. With prompts: model, how "
        "many the model writes; null: as many as the source has.",
    },
    "max_new_tokens": {
        "type": "integer",
        "minimum": 1,
        "default": 256,
        "description": "Maximum number of tokens of an answer, and of a prompt; a longer one is not used.",
    },
    "temperature": {
        "type": "number",
        "minimum": 0,
        "default": 1.0,
        "description": "Divides the logits; 1: the model's own distribution; 0: the most likely token each time.",
    },
    "top_p": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 1.0,
        "description": "Probability mass that tokens are sampled from.",
    },
    "max_repetition": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.2,
        "description": "A text is not used if more than this fraction of its sequences of 4 "
        "words occurred in it before.",
    },
    "min_log_probability": {
        "type": ["number", "null"],
        "maximum": 0,
        "default": -5.0,
        "description": "With prompts: model: smallest mean log-probability of a prompt's tokens under the model, in "
        "nats; null: any.",
    },
}
"""Keys of the option `writing`."""

WRITING_OPTION: dict[str, Any] = {
    "type": "object",
    "properties": WRITING_PROPERTIES,
    "additionalProperties": False,
    "default": {},
    "description": "How the model writes, with answers: model or prompts: model.",
}
"""The option `writing` of a mitigation that can train on the model's own responses."""

PROMPTS_OPTION: dict[str, Any] = {
    "enum": ["data", "model"],
    "default": "data",
    "description": "model: the base model writes the prompts itself, from the header of a user's turn (Magpie), and "
    "answers them. The rows of the source are then placeholders in `harness check` and `harness plan` alone.",
}
"""The option `prompts` of a mitigation that can train on conversations which the model writes alone."""

Writer = Literal["data", "model"]

MIN_PROMPT_WORDS = 3
"""Words of the shortest prompt that is used."""

NGRAM_WORDS = 4
"""Words of a sequence whose repetition is counted."""


@dataclass(frozen=True)
class ResponseWriter:
    """How responses are written, and which of them are used.

    Attributes:
        prompts: See `WRITING_PROPERTIES`.
        max_new_tokens: See `WRITING_PROPERTIES`.
        temperature: See `WRITING_PROPERTIES`.
        top_p: See `WRITING_PROPERTIES`.
        max_repetition: See `WRITING_PROPERTIES`.
        min_log_probability: See `WRITING_PROPERTIES`.
    """

    prompts: int | None
    max_new_tokens: int
    temperature: float
    top_p: float
    max_repetition: float
    min_log_probability: float | None = None

    @property
    def max_row_tokens(self) -> int:
        """Maximum number of tokens that the model writes for a row."""
        return self.max_new_tokens

    def settings(self) -> Mapping[str, Any]:
        """Return what the responses depend on, see `Mitigation.generation_settings`."""
        unused = ("prompts", "min_log_probability")
        settings = {name: value for name, value in vars(self).items() if name not in unused}
        return {"writer": "responses|version:1", **settings}

    def write_rows(self, model: Any, prompts: PromptRows, *, seed: int) -> Iterator[Example | InvalidRecord]:
        """Yield each row with the model's response, or why it is not used."""
        for response in prompts.write_responses(
            model, max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, seed=seed
        ):
            reason = self.why_unused(response)
            if reason is None:
                yield response.to_example()
            else:
                yield InvalidRecord(response.example.location, reason, raw=response.text)

    def why_unused(self, response: WrittenResponse) -> str | None:
        """Return why a response is not used, as the report counts it; None if it is."""
        if response.finish == "no_prompt":
            return "without a prompt"
        if response.finish == "empty":
            return "empty"
        if response.finish == "length":
            return f"not ended within {self.max_new_tokens} tokens"
        return "repetitive" if repeated_fraction(response.text) > self.max_repetition else None


class ConversationWriter(ResponseWriter):
    """How prompts are written and answered, and which of them are used. Attributes: those of `ResponseWriter`."""

    @property
    def max_row_tokens(self) -> int:
        """Maximum number of tokens that the model writes for a row: a prompt and its answer."""
        return 2 * self.max_new_tokens

    def settings(self) -> Mapping[str, Any]:
        """Return what the conversations depend on, see `Mitigation.generation_settings`."""
        return {"writer": "conversations|version:1", **vars(self)}

    def write_rows(self, model: Any, prompts: PromptRows, *, seed: int) -> Iterator[Example | InvalidRecord]:
        """Yield why a prompt is not used, then each other prompt with its response, or why that is not used."""
        count = len(prompts.examples) if self.prompts is None else self.prompts
        sampling: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": seed,
        }
        usable: list[Example] = []
        known: set[tuple[str, ...]] = set()
        for index, prompt in enumerate(prompts.write_prompts(model, count, **sampling), start=1):
            location = f"{prompts.source}: prompt {index} of the model"
            words = tuple(split_words(prompt.text))
            reason = "a prompt twice" if words in known else self._why_prompt_unused(prompt, len(words))
            known.add(words)
            if reason is None:
                messages = (Message("user", prompt.text), Message("assistant", "not yet written"))
                usable.append(Example(f"prompt {index}", messages, location))
            else:
                yield InvalidRecord(location, reason, raw=prompt.text)
        if usable:
            yield from super().write_rows(model, replace(prompts, examples=usable), seed=seed)

    def _why_prompt_unused(self, prompt: WrittenPrompt, num_words: int) -> str | None:
        """Return why a prompt is not used, as the report counts it; None if it is."""
        if prompt.finish == "length":
            return f"a prompt not ended within {self.max_new_tokens} tokens"
        if num_words < MIN_PROMPT_WORDS:
            return f"a prompt of less than {MIN_PROMPT_WORDS} words"
        if repeated_fraction(prompt.text) > self.max_repetition:
            return "a repetitive prompt"
        unlikely = self.min_log_probability is not None and prompt.log_probability < self.min_log_probability
        return "an unlikely prompt" if unlikely else None


def build_writer(
    mitigation: str, answers: Writer, prompts: Writer, writing: Mapping[str, Any]
) -> ResponseWriter | None:
    """Return what writes the rows of a mitigation; None: the rows of the data are used.

    Args:
        mitigation: The name of the mitigation, for errors.
        answers: `model`: the model answers the prompts of the data.
        prompts: `model`: the model writes prompts and answers them, whatever `answers` is.
        writing: The option `writing`.

    Raises:
        HarnessError: All prompts would be equal.
    """
    if prompts == "model":
        if not writing["temperature"]:
            where, what = f"mitigations.{mitigation}.writing.temperature", "at 0 the model writes one prompt only"
            raise HarnessError(where, what, "set it above 0, e.g. to 1")
        return ConversationWriter(**writing)
    return ResponseWriter(**writing) if answers == "model" else None


def repeated_fraction(text: str) -> float:
    """Return the fraction of a text's sequences of `NGRAM_WORDS` words that occurred in it before, in [0, 1)."""
    words = split_words(text)
    ngrams = [tuple(words[begin : begin + NGRAM_WORDS]) for begin in range(len(words) - NGRAM_WORDS + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def keep_most_similar(
    rows: Sequence[Example | InvalidRecord], examples: Sequence[Example], keep: float
) -> Iterator[Example | InvalidRecord]:
    """Yield the written rows, of which only those are used that are most similar to the responses of the data.

    Args:
        rows: What `ResponseWriter.write_rows` yields.
        examples: The rows with the responses of the data, in the same order.
        keep: Fraction of the usable rows that is kept, in (0, 1], rounded; at least one row. Of equally similar rows,
            the first are kept.
    """
    similarities = {
        index: word_f1(row.messages[-1].content, example.messages[-1].content)
        for index, (row, example) in enumerate(zip(rows, examples, strict=True))
        if isinstance(row, Example)
    }
    count = max(1, round(keep * len(similarities)))
    kept = set(sorted(similarities, key=lambda index: -similarities[index])[:count])
    for index, row in enumerate(rows):
        if isinstance(row, Example) and index not in kept:
            yield InvalidRecord(row.location, "less similar to the data's response", raw=row.messages[-1].content)
        else:
            yield row


def word_f1(text: str, reference: str) -> float:
    """Return the F1 of the words of two texts, in [0, 1], each word as often as it occurs; 0 without words."""
    words, reference_words = Counter(split_words(text)), Counter(split_words(reference))
    total = words.total() + reference_words.total()
    return 2 * (words & reference_words).total() / total if total else 0.0
