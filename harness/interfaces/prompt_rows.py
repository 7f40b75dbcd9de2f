"""The rows to which a model writes responses, as `Mitigation.generate_rows` receives them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.types import Example, WrittenResponse

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PromptRows(ABC):
    """The training rows of one source.

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
        batch_size: int = 8,
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
