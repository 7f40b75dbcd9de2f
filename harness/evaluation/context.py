"""Who is asked, and in which words: what every way of reading a model has in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from harness.data.tokenization.prompts import encode_prompt
from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Suite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BaseModelContext = Callable[[], AbstractContextManager[Any]]
"""Makes a context within which its target is the base model: the same one with its adapter off, or a second copy."""

NO_LENGTH_LIMIT = 1 << 40
"""A length that cuts nothing."""

ItemCallback = Callable[[int, Mapping[str, Any]], None]
"""Told, once for each item, its index and the fields of `Item` that were found."""


@dataclass(frozen=True)
class EvalContext:
    """A model, the way it is spoken to, and a suite. model: None where only a server answers.

    max_length: tokens after which a row is cut. base_context: None where the base model is not at hand.
    notify: tells the one who waits what goes on.
    """

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    template: Template
    suite: Suite
    examples: Sequence[Example]
    stage: int
    seed: int
    max_length: int
    base_context: BaseModelContext | None
    notify: Callable[[str], None]

    @property
    def phase(self) -> str:
        """What this suite's work is called while it goes on."""
        return f"evaluate {self.suite.name}"

    def require_model(self) -> PreTrainedModel:
        """The model. Raises HarnessError where there is none."""
        if self.model is None:
            what = "needs a model, and only a server is at hand, which can answer and no more"
            raise HarnessError(
                f"evaluate.{self.suite.name}", what, "leave metrics of likelihood out, or load the model"
            )
        return self.model

    def max_positions(self) -> int:
        """The positions that the model knows; UNCUT where it does not say."""
        config = getattr(self.model, "config", None)
        return getattr(config, "max_position_embeddings", None) or NO_LENGTH_LIMIT

    def prompt_ids(self, example: Example, max_tokens: int = NO_LENGTH_LIMIT) -> list[int]:
        """The ids that the model is asked with, cut at the left to `max_tokens` of them.

        By the template, or as plain text where the suite says so; then with what the tokenizer puts first by itself.
        """
        if not self.suite.plain:
            return encode_prompt(example, self.template, self.tokenizer, max_tokens)
        ids = self.plain_ids(build_plain_prompt(example))
        return ids if len(ids) <= max_tokens else ids[len(ids) - max_tokens :]

    def plain_ids(self, text: str) -> list[int]:
        """The ids of a text as the tokenizer gives them by itself, without an end-of-sequence token that it adds."""
        ids = list(self.tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids


def build_plain_prompt(example: Example) -> str:
    """The question as it stands. Raises HarnessError for a conversation of several turns, which needs a template."""
    *before, _ = example.messages
    asked = before[1:] if before and before[0].role == "system" else before
    if len(asked) != 1 or asked[0].role != "user":
        what = "has no single question, so it has no plain prompt"
        raise HarnessError(example.location, what, 'leave the suite\'s "plain" off')
    texts = [text for message in before for text in (message.content, message.input) if text]
    return "\n\n".join(texts)


class ModelMeasurement(Protocol):
    """One way of reading a model, over the examples of its subject.

    settings: what the result depends on beside model, tokenizer and template, as plain JSON types.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def request_key(self, index: int) -> Any:
        """What exactly the model is given for an item, as plain JSON types."""

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Read the items `todo`, telling each as it is done."""
