"""The model, suite and prompts that every measurement of an evaluation shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from harness.data.tokenization.prompts import encode_prompt
from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError
from harness.evaluation.batch_support import FULL_SUPPORT, BatchSupport
from harness.interfaces.template import Template
from harness.model.position_limit import config_as_dict, position_limit
from harness.types import Example, Suite

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BaseModelContext = Callable[[], AbstractContextManager[Any]]
"""Returns a context whose target is the base model: the same model with its adapter disabled, or a second copy."""

NO_LENGTH_LIMIT = 1 << 40
"""A length at which nothing is truncated."""

ItemCallback = Callable[[int, Mapping[str, Any]], None]
"""Called once for each item, with its index and the measured fields of `Item`."""


@dataclass(frozen=True)
class ModelToEvaluate:
    """A model after a stage, and how its prompts are built.

    Attributes:
        model: None if every suite has a `server` and only metrics of answers.
        tokenizer: The model's tokenizer.
        template: The template of training.
        stage: Index of the stage; 0 for the base model.
        seed: Seed of sampled answers.
        max_length: Number of tokens after which a row is truncated at its end, and a prompt at its beginning.
        templates: Suite -> its own template, for suites that have one.
        base_context: Returns a context whose target is the base model, e.g. `lambda: save.base_model(model)` for a
            model with an adapter, or `lambda: nullcontext(copy)`. Metrics that require `base` need it after a stage.
            They cost a second forward pass of the reference responses. At stage 0, None means that the model itself
            is the base.
        batch_support: What the model's batches may look like, see `probe_batch_support`.
        use_cache: Whether measurements of the base model come from `base_cache` and are saved there, if the evaluation
            has a folder.
        processes: The processes over which items are split. Each has the model.
    """

    model: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    template: Template
    stage: int
    seed: int
    max_length: int
    templates: Mapping[str, Template] = field(default_factory=dict)
    base_context: BaseModelContext | None = None
    batch_support: BatchSupport = FULL_SUPPORT
    use_cache: bool = False
    processes: Processes = SINGLE_PROCESS

    def for_suite(self, suite: Suite, examples: Sequence[Example], notify: Callable[[str], None]) -> EvalContext:
        """Return the context in which a suite is evaluated."""
        return EvalContext(
            model=self.model,
            tokenizer=self.tokenizer,
            template=self.templates.get(suite.name, self.template),
            suite=suite,
            examples=examples,
            stage=self.stage,
            seed=self.seed,
            max_length=self.max_length,
            base_context=self.base_context,
            notify=notify,
            batch_support=self.batch_support,
            processes=self.processes,
        )


@dataclass(frozen=True)
class EvalContext:
    """A model and a suite, with everything that decides the prompts.

    Attributes:
        model: None if answers come from a server only.
        tokenizer: The model's tokenizer.
        template: The suite's template.
        suite: The suite.
        examples: The rows of the suite.
        stage: Index of the stage; 0 for the base model.
        seed: Seed of sampled answers.
        max_length: Number of tokens after which a row is truncated.
        base_context: None if the base model is not available.
        notify: Receives notes for display.
        batch_support: What the model's batches may look like.
        processes: The processes over which items are split.
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
    batch_support: BatchSupport = FULL_SUPPORT
    processes: Processes = SINGLE_PROCESS

    @property
    def phase(self) -> str:
        """Name of this suite's evaluation in progress reports."""
        return f"evaluate {self.suite.name}"

    def require_model(self) -> PreTrainedModel:
        """Return the model.

        Raises:
            HarnessError: There is no model.
        """
        if self.model is None:
            what = "a metric needs a model, but only a server is available, which cannot return likelihoods"
            raise HarnessError(f"evaluate.{self.suite.name}", what, "remove metrics of likelihood, or load the model")
        return self.model

    @property
    def pad_id(self) -> int:
        """The token that pads a batch."""
        pad_id: int = self.tokenizer.pad_token_id
        return pad_id

    def max_positions(self) -> int:
        """Return the number of positions of the model; `NO_LENGTH_LIMIT` if its config does not have it."""
        config = getattr(self.model, "config", None)
        limit = None if config is None else position_limit(config_as_dict(config))
        return NO_LENGTH_LIMIT if limit is None else limit.positions

    def prompt_ids(self, example: Example, max_tokens: int = NO_LENGTH_LIMIT) -> list[int]:
        """Return the token ids of the prompt, truncated at the left to `max_tokens`.

        The prompt is rendered by the template, or as plain text if the suite has `plain`. It includes the tokens that
        the tokenizer adds at the beginning.
        """
        if not self.suite.plain:
            return encode_prompt(example, self.template, self.tokenizer, max_tokens)
        ids = self.plain_ids(build_plain_prompt(example))
        return ids if len(ids) <= max_tokens else ids[len(ids) - max_tokens :]

    def plain_ids(self, text: str) -> list[int]:
        """Return the tokenizer's ids of a text, without the end-of-sequence token that some tokenizers append."""
        ids = list(self.tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids


def build_plain_prompt(example: Example) -> str:
    """Return the question without a template.

    Raises:
        HarnessError: The conversation has several turns, which need a template.
    """
    *prompt_messages, _ = example.messages
    turns = prompt_messages[1:] if prompt_messages and prompt_messages[0].role == "system" else prompt_messages
    if len(turns) != 1 or turns[0].role != "user":
        what = "does not have exactly one question, so it has no plain prompt"
        raise HarnessError(example.location, what, 'remove "plain" from the suite')
    texts = [text for message in prompt_messages for text in (message.content, message.input) if text]
    return "\n\n".join(texts)


class ModelMeasurement(Protocol):
    """One measurement of a model over the examples of its context: answers, likelihoods, …."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the result depends on besides model, tokenizer and template, as plain JSON types."""
        ...

    def request_key(self, index: int) -> Any:
        """Return the exact model input of an item, as plain JSON types."""
        ...

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Measure the items `todo`; `on_item` receives each item's fields as soon as it is done."""
        ...
