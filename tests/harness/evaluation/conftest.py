"""A template, metrics and an echo model, small enough that every number is known."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness.evaluation.context import ModelToEvaluate
from harness.evaluation.evaluate import evaluate_suites
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.interfaces.metric import Metric
from harness.interfaces.template import Template
from harness.types import Example, Item, Message, Span, Suite, no_progress


class ChatMLTemplate(Template):
    """ChatML with the given stop strings."""

    name = "turns"

    def __init__(self, *stops: str) -> None:
        self.stops = stops or ("<|im_end|>",)

    def render(
        self, messages: Sequence[Message], tokenizer, *, add_generation_prompt: bool = False, tools=()
    ) -> tuple[Span, ...]:
        spans = []
        for message in messages:
            trained = message.role == "assistant"
            spans += [Span(f"<|im_start|>{message.role}\n", markup=True), Span(message.content, trained)]
            spans += [Span("<|im_end|>", trained, markup=True), Span("\n", markup=True)]
        return (*spans, Span("<|im_start|>assistant\n", markup=True)) if add_generation_prompt else tuple(spans)

    def stop_strings(self, tokenizer) -> tuple[str, ...]:
        return self.stops


class MeanNll(Metric):
    """Mean NLL per token."""

    requires = "likelihood"
    higher_is_better = False
    score_names = ("nll",)

    def signature(self) -> str:
        return "nll|test"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        assert item.nll is not None
        return {"nll": (item.nll, float(item.tokens))}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        return total[0] / total[1] if total[1] else float("nan")


class EqualsReference(Metric):
    """Fraction of answers that equal the reference."""

    requires = "answer"
    score_names = ("same",)

    def signature(self) -> str:
        return "same|test"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        assert item.answer is not None
        return {"same": (float(item.answer == item.reference), 1.0)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        return total[0] / total[1]


class EchoModel(nn.Module):
    """Answers each prompt with the user's message and ends its turn; every continuation is equally likely.

    Attributes:
        rows: Number of rows of each forward pass.
        room: More rows than this run out of memory, after `after` forward passes.
    """

    def __init__(self, tokenizer, room: int = 10**9, after: int = 0) -> None:
        super().__init__()
        self.tokenizer, self.room, self.after = tokenizer, room, after
        self.config = SimpleNamespace(max_position_embeddings=512)
        self.config.get_text_config = lambda: SimpleNamespace(vocab_size=len(tokenizer))
        self.head = nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rows: list[int] = []

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, attention_mask, use_cache, past_key_values=None, position_ids=None):
        self.rows.append(len(input_ids))
        if len(input_ids) > self.room and len(self.rows) > self.after:
            raise torch.OutOfMemoryError("out of memory")
        hidden = torch.zeros(*input_ids.shape, len(self.tokenizer))
        if not use_cache:
            return SimpleNamespace(logits=self.head(hidden))
        cache = past_key_values or EchoCache(
            [self._answer_ids(row, mask) for row, mask in zip(input_ids, attention_mask, strict=True)]
        )
        for row, left in enumerate(cache.left):
            hidden[row, -1, left.pop(0) if left else self.tokenizer.pad_token_id] = 1.0
        return SimpleNamespace(logits=self.head(hidden), past_key_values=cache)

    def _answer_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> list[int]:
        text = self.tokenizer.decode(ids[mask.bool()])
        message = text.rsplit("<|im_start|>user\n", 1)[1].split("<|im_end|>")[0]
        return self.tokenizer(message + "<|im_end|>", add_special_tokens=False)["input_ids"]


class EchoCache:
    """The tokens that each row of a batch has yet to generate."""

    def __init__(self, left: list[list[int]]) -> None:
        self.left = left

    def reorder_cache(self, kept: torch.Tensor) -> None:
        self.left = [self.left[index] for index in kept.tolist()]


def example(prompt: str, response: str) -> Example:
    messages = (Message("user", prompt), Message("assistant", response))
    return Example(f"id-{prompt}", messages, "test:1")


def suite(name: str = "desk", batch_size: int = 4, max_new_tokens: int = 24, **settings) -> Suite:
    return Suite(name, "source", "domain", {}, None, max_new_tokens, batch_size, **settings)


@pytest.fixture
def kit(tokenizer):
    """Return the classes above under short names, and a function that evaluates one suite."""

    def evaluate(model, suite, rows, metrics, *, folder=None, progress=no_progress, **settings):
        settings = {"stage": 0, "seed": 0, "max_length": 200, "tokenizer": tokenizer, **settings}
        settings.setdefault("template", ChatMLTemplate())
        subject = ModelToEvaluate(model, **settings)
        examples, suite_metrics = {suite.name: rows}, {suite.name: metrics}
        (result,) = evaluate_suites(subject, [suite], examples, suite_metrics, folder=folder, progress=progress)
        return result

    return SimpleNamespace(
        template=ChatMLTemplate,
        likelihood=MeanNll(),
        same=EqualsReference(),
        echo=lambda **options: EchoModel(tokenizer, **options),
        example=example,
        suite=suite,
        evaluate=evaluate,
    )


@pytest.fixture
def metric():
    """Return a function that creates a built-in metric with its default options."""
    from harness import registry
    from harness.spec.schema import fill_defaults

    plugins = registry.discover_plugins(
        [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
    )

    def create(name: str, **options) -> Metric:
        schema = {"type": "object", "properties": dict(plugins.get("metrics", name).options)}
        return plugins.create("metrics", name, fill_defaults(options, schema, schema))

    return create
