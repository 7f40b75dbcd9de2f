"""Check that the rows of a suite are what its metrics measure, before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.data.tokenization.prompts import require_prompt
from harness.errors import HarnessError
from harness.evaluation.context import build_plain_prompt
from harness.types import Example, Suite


def gold_index(example: Example) -> int:
    """Return the index of the correct choice.

    Raises:
        HarnessError: The row is not a multiple-choice question.
    """
    if len(example.choices) < 2:
        what = "is not a multiple-choice question, but a metric of its suite needs choices"
        raise HarnessError(example.location, what, 'add "choices" and "answer" to the row, or remove the metric')
    if example.messages[-1].content not in example.choices:
        raise HarnessError(
            example.location, "has a response that is not one of its choices", "fix the answer of the row"
        )
    return example.choices.index(example.messages[-1].content)


def require_plain_text(example: Example) -> None:
    """Require a plain text.

    Raises:
        HarnessError: The row is a conversation.
    """
    if [message.role for message in example.messages] != ["text"]:
        what = "is a conversation, but a metric of its suite needs plain text"
        raise HarnessError(example.location, what, 'use a source with rows of the form "text"')


def check_suite_rows(suite: Suite, examples: Sequence[Example], requirements: Iterable[str]) -> None:
    """Check that each row of a suite has what the suite's metrics require.

    The rows of a source have one format, so the first one is checked. With `plain`, every row needs one question.

    Args:
        suite: The suite.
        examples: Its rows.
        requirements: The values of `Metric.requires` of its metrics.

    Raises:
        HarnessError: For the first row that lacks something, with the suite and the location of the row.
    """
    required = set(requirements)
    try:
        for example in examples if suite.plain else examples[:1]:
            if "text" in required:
                require_plain_text(example)
            if "choices" in required:
                gold_index(example)
            if "answer" in required:
                require_prompt(example)
            if suite.plain and required & {"answer", "choices"}:
                build_plain_prompt(example)
    except HarnessError as error:
        raise HarnessError(f"evaluate.{suite.name}: {error.where}", error.what, error.hint) from error
