"""What the batches of a model may look like, as `padding_probe` finds out. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSupport:
    """What a model's batches may look like without a change of its numbers.

    Attributes:
        cache: Whether the model returns a cache of keys and values that gives the numbers of a complete forward pass.
        left_padding: Whether a left-padded prompt has the same answer as alone.
        right_padding: Whether a right-padded row has the same likelihoods as alone.
        lines: Whether rows on one line have the same likelihoods as alone, also if they share their beginning.
    """

    cache: bool = True
    left_padding: bool = True
    right_padding: bool = True
    lines: bool = False

    def warnings(self, *, generates: bool) -> Iterator[str]:
        """Yield what differs from the usual, one line each.

        Args:
            generates: Whether the model generates answers.
        """
        if generates and not self.left_padding:
            yield "padding changes the answers of this model: they are generated one at a time (batch size 1)"
        if not self.right_padding and not self.lines:
            yield (
                "padding changes the likelihoods of this model: they are computed one at a time; "
                "set train.batch_size to 1 with accumulation to train without padding"
            )
        if generates and not self.cache:
            yield "this model has no cache to generate answers with: each token costs a complete forward pass"


FULL_SUPPORT = BatchSupport()
"""The support of an ordinary transformer."""
