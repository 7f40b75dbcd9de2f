"""The rows to which a model writes responses, as `Mitigation.generate_rows` receives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.types import Example, WrittenPrompt, WrittenResponse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PromptRows(ABC):
    """The training rows of one source.

    `dataclasses.replace(prompts, examples=others)` has other rows written to, e.g. those of written prompts.

    Attributes:
        source: The name of the source.
        examples: The rows, with the responses of the data. Each is read from disk when it is accessed.
    """

    source: str
    examples: Sequence[Example]

    @abstractmethod
    def write_responses(
        self,
        model: PreTrainedModel,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        batch_size: int = 32,
        seed: int,
    ) -> Iterator[WrittenResponse]:
        """Let a model answer the prompt of each row, in the template of training.

        The prompt is everything before the last response.

        Args:
            model: The model.
            max_new_tokens: Maximum number of tokens of a response.
            temperature: Divides the logits; 0: the most likely token each time.
            top_p: Probability mass to sample from, 0 to 1.
            batch_size: Responses at once. It is halved when the device is out of memory.
            seed: Seed of the samples. Each row has its own samples, whatever the other rows are.

        Yields:
            One response for each row, in the order of the rows.
        """

    @abstractmethod
    def write_prompts(
        self,
        model: PreTrainedModel,
        count: int,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        batch_size: int = 32,
        seed: int,
    ) -> Iterator[WrittenPrompt]:
        """Let a model write what users would ask it, in the template of training (Magpie, arXiv:2406.08464).

        The model continues a conversation up to where a user's text begins, until the end of the user's turn. No row
        of the source is read.

        Args:
            model: The model.
            count: Number of prompts.
            max_new_tokens: Maximum number of tokens of a prompt.
            temperature: Divides the logits; 0: the most likely token each time, so all prompts are equal.
            top_p: Probability mass to sample from, 0 to 1.
            batch_size: Prompts at once. It is halved when the device is out of memory.
            seed: Seed of the samples. Each prompt has its own samples, however many are written.

        Yields:
            `count` prompts, in a fixed order.

        Raises:
            HarnessError: The template writes nothing before a user's text.
        """
