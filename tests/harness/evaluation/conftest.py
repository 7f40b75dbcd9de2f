"""A template, metrics and a model that says what it is told, small enough to know every number beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness.interfaces.metric import Metric
from harness.interfaces.template import Template
from harness.types import Example, Item, Message, Span, Suite

torch.set_num_threads(1)


class Turns(Template):
    """ChatML; `stopping` are its stops."""

    name = "turns"

    def __init__(self, *stopping: str) -> None:
        self.stopping = stopping or ("<|im_end|>",)

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
        return self.stopping


class Likelihood(Metric):
    """Mean NLL a token."""

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


class Same(Metric):
    """Share of answers that are the reference."""

    requires = "answer"
    score_names = ("same",)

    def signature(self) -> str:
        return "same|test"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        assert item.answer is not None
        return {"same": (float(item.answer == item.reference), 1.0)}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        return total[0] / total[1]


class Echo(nn.Module):
    """Answers each prompt with its user's message and ends its turn; any continuation is as likely as any other.

    rows: how many rows each forward pass was given. room: out of memory with more rows than that.
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
            raise torch.OutOfMemoryError("no room")
        hidden = torch.zeros(*input_ids.shape, len(self.tokenizer))
        if not use_cache:
            return SimpleNamespace(logits=self.head(hidden))
        cache = past_key_values or Script([self._said(row, mask) for row, mask in zip(input_ids, attention_mask)])  # noqa: B905
        for row, left in enumerate(cache.left):
            hidden[row, -1, left.pop(0) if left else self.tokenizer.pad_token_id] = 1.0
        return SimpleNamespace(logits=self.head(hidden), past_key_values=cache)

    def _said(self, ids: torch.Tensor, mask: torch.Tensor) -> list[int]:
        text = self.tokenizer.decode(ids[mask.bool()])
        said = text.rsplit("<|im_start|>user\n", 1)[1].split("<|im_end|>")[0]
        return self.tokenizer(said + "<|im_end|>", add_special_tokens=False)["input_ids"]


class Script:
    """What each row of a batch has still to say."""

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
    """The things above, under short names."""
    return SimpleNamespace(
        template=Turns,
        likelihood=Likelihood(),
        same=Same(),
        echo=lambda **options: Echo(tokenizer, **options),
        example=example,
        suite=suite,
    )


@pytest.fixture
def metric():
    """A built-in metric by its name, made as a run makes it, its defaults filled in."""
    from harness import registry
    from harness.spec.schema import fill_defaults

    found = registry.discover_plugins(
        [pair for pair in registry.installed_entry_points() if pair[0] == registry.CORE_DISTRIBUTION]
    )

    def made(name: str, **options) -> Metric:
        fragment = {"type": "object", "properties": dict(found.get("metrics", name).options)}
        return found.create("metrics", name, fill_defaults(options, fragment, fragment))

    return made
