"""Mitigation `kl`: the model's next-token distributions are regularized towards those of the base model.

On general rows (the default) it preserves what the task does not cover. On the task's own tokens it is learning without
forgetting (LwF, arXiv:1606.09282), which works against the task, unless the target token is dropped from both
distributions (arXiv:2605.29498). Direction and temperature are options: the same strength has another effect for
another divergence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import Component, ComponentExample, Example, InvalidRecord, PromptRows, seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations.response_writer import (
    PROMPTS_OPTION,
    WRITING_OPTION,
    ConversationWriter,
    ResponseWriter,
    Writer,
    build_writer,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_mitigations.kl_divergence import Direction

COMPONENTS: dict[str, Component] = {
    "kl": Component(
        summary="Penalizes the KL divergence from the base model's predictions (on the task's tokens: LwF).",
        factory="harness_mitigations.kl:build_kl_mitigation",
        options={
            "on": {
                "enum": ["general", "task"],
                "default": "general",
                "description": "The tokens it is computed on. general: rows of `source`, drawn for each step. task: "
                "the batch's own trained tokens.",
            },
            "source": {
                "type": ["string", "null"],
                "format": "source",
                "default": None,
                "description": "For general: the source of the rows.",
            },
            "rows": {
                "type": "integer",
                "minimum": 1,
                "default": 4,
                "description": "For general: rows a step, in a forward and backward pass of their own.",
            },
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 1.0,
                "description": "Factor of the divergence, which is in nats a trained token, like the loss.",
            },
            "direction": {
                "enum": ["forward", "reverse"],
                "default": "forward",
                "description": "forward: KL(base || model), cover what the base predicts; reverse: KL(model || base).",
            },
            "temperature": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 1.0,
                "description": "Temperature of both distributions; the divergence is multiplied by its square.",
            },
            "drop_target": {
                "type": "boolean",
                "default": False,
                "description": "For task: compute the divergence without the target token, which the task trains; "
                "the other tokens' probabilities are renormalized.",
            },
            "answers": {
                "enum": ["data", "model"],
                "default": "data",
                "description": "For general: data: the rows as they are. model: the base model answers their prompts "
                "before training, and the divergence is computed on its answers.",
            },
            "prompts": PROMPTS_OPTION,
            "writing": WRITING_OPTION,
        },
        example=ComponentExample({"source": "given", "answers": "model"}),
    ),
}


def token_kl(
    logits: Tensor,
    base_logits: Tensor,
    direction: Direction,
    temperature: float = 1.0,
    dropped: Tensor | None = None,
) -> Tensor:
    """Return the divergence between the next-token distributions of a model and its base at each of N positions.

    Args:
        logits: (N, V), the model's.
        base_logits: (N, V), the base model's.
        direction: `forward`: KL(base || model), low only where the model covers everything that the base predicts;
            `reverse`: KL(model || base), low only where the model predicts nothing that the base would not.
        temperature: tau of both distributions. The result is multiplied by tau^2, so that the gradient keeps its scale.
        dropped: (N,), a token of each position that is removed from both distributions, which are then renormalized
            (arXiv:2605.29498). Neither the value nor the gradient depends on its logits. None: no token.

    Returns:
        (N,) float32, in nats, with its graph.
    """
    from harness_mitigations.kl_divergence import token_divergence

    return token_divergence(logits, base_logits, direction, temperature, dropped)


def build_kl_mitigation(  # noqa: PLR0913 (one argument for each option)
    on: Literal["general", "task"],
    source: str | None,
    rows: int,
    strength: float,
    direction: Direction,
    temperature: float,
    drop_target: bool,
    answers: Writer,
    prompts: Writer,
    writing: Mapping[str, Any],
) -> Mitigation:
    """Return the mitigation for the tokens that `on` names.

    `source`, `rows`, `answers`, `prompts` and `writing` apply to `general` only, `drop_target` to `task` only.

    Raises:
        HarnessError: `drop_target`, `answers` or `prompts` has a value that `on` excludes.
    """
    if on == "general" and drop_target:
        raise HarnessError(
            "mitigations.kl.drop_target",
            "the task does not train the targets of general rows, so the divergence there does not work against it",
            'set mitigations.kl.on to "task", or remove drop_target',
        )
    if on == "task" and "model" in (answers, prompts):
        option = "answers" if answers == "model" else "prompts"
        raise HarnessError(
            f"mitigations.kl.{option}",
            "the model can write general rows only: the rows of the task have the responses of the data",
            f'set mitigations.kl.on to "general", or remove {option}',
        )
    if on == "task":
        return TaskKl(strength, direction, temperature, drop_target)
    writer = build_writer("kl", answers, prompts, writing)
    return GeneralKl(source, rows, strength, direction, temperature, writer)


class GeneralKl(Mitigation):
    """Add strength * the mean divergence over the trained tokens of some rows of `source`, drawn for each step.

    The rows follow from the seed, the stage and the number of the step. The mean is over all their trained tokens,
    however they are padded or the step is split into micro-batches.

    Args:
        source: the source of the rows.
        rows: number of rows a step, all processes together, drawn without replacement.
        strength: factor of the divergence.
        direction: see `token_kl`.
        temperature: see `token_kl`.
        writer: how the base model writes the rows or their responses; None: the rows of the data.
    """

    def __init__(
        self,
        source: str | None,
        rows: int,
        strength: float,
        direction: Direction,
        temperature: float,
        writer: ResponseWriter | None,
    ) -> None:
        self.source, self.rows, self.strength, self.writer = source, rows, strength, writer
        if source is not None and writer is not None:
            self.unmixed_sources, self.unmixed_limit = (source,), writer.prompts
            self.writes_prompts = isinstance(writer, ConversationWriter)
        self.direction, self.temperature = direction, temperature
        self.pool: Sequence[TokenizedExample] = ()
        self.stage_name = ""
        self.seed = self.step = 0
        self.added_this_step = False
        self.base_copy: PreTrainedModel | None = None  # read for the memory of the report

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Require a source."""
        if self.source is None:
            raise HarnessError(
                "mitigations.kl.source",
                "no source is given for the rows of the divergence",
                'name one of general conversations, or set mitigations.kl.on to "task"',
            )

    def generation_settings(self) -> Mapping[str, Any] | None:
        """Return how the base model writes."""
        return None if self.writer is None else self.writer.settings()

    def generate_rows(
        self, stage: Stage, model: PreTrainedModel, prompts: PromptRows, *, seed: int
    ) -> Iterator[Example | InvalidRecord]:
        """Yield the rows of the source with the answers of the base model, or rows that it wrote alone."""
        assert self.writer is not None
        return self.writer.write_rows(model, prompts, seed=seed)

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Copy the base model before the first stage, and keep the rows to draw from.

        Raises:
            HarnessError: `source` has no row.
        """
        from harness_mitigations import base_model

        self.pool = rows.get(self.source or "", ())
        if not self.pool:
            what = f"'{self.source}' has no row to compute the divergence on"
            raise HarnessError("mitigations.kl.source", what, "name a source that has rows to train on")
        self.base_copy = base_model.snapshot_base(model)
        self.stage_name, self.seed, self.step, self.added_this_step = stage.name, seed, 0, False

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the copy of the trained weights; an adapter needs none."""
        return _bytes_of_base_copy(model, itemsize)

    def extra_tokens(self, rows: Mapping[str, Sequence[TokenizedExample]]) -> int:
        """Return the tokens of the longest rows that a step can draw; if they are not written yet, at most so many."""
        pool = rows.get(self.source or "", ())
        lengths = getattr(pool, "lengths", None)  # rows on disk have these without being read
        if lengths is None:
            lengths = [len(row.input_ids) for row in pool]
        longest = sorted(lengths, reverse=True)[: self.rows]
        written = 0 if self.writer is None else self.writer.max_row_tokens
        return int(sum(longest)) + written * len(longest)

    def extra_loss(self, model: PreTrainedModel, token_fraction: float) -> torch.Tensor | None:
        """Return the term of this process's rows with the first micro-batch of a step; None with the others."""
        if self.added_this_step or self.strength == 0:
            return None
        self.added_this_step = True
        from harness.training.loss import chunked_target_logits
        from harness_mitigations import base_model

        rank, world_size = _rank_and_world_size()
        sampled_rows = self._sample_rows()
        token_count = sum(row.loss_tokens for row in sampled_rows)
        local_rows = sampled_rows[rank::world_size]
        if not local_rows:
            return None
        batch = base_model.collate_rows(model, local_rows)
        with base_model.frozen_base_model(model) as base:
            base_chunks = chunked_target_logits(base, batch)

        def chunk_kl(logits: torch.Tensor, place: slice) -> torch.Tensor:  # logits: (n, V)
            return token_kl(logits, base_chunks.chunk(place), self.direction, self.temperature).sum()

        return self.strength * chunked_target_logits(model, batch).sum(chunk_kl) / token_count

    def on_step_restart(self, model: PreTrainedModel) -> None:
        """Add the term again with the first micro-batch of the restarted step."""
        self.added_this_step = False

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Advance to the next step, which draws other rows."""
        self.step, self.added_this_step = self.step + 1, False

    def _sample_rows(self) -> list[TokenizedExample]:
        generator = seeding.create_generator(self.seed, "kl", self.stage_name, self.step)
        return [self.pool[index] for index in generator.sample(range(len(self.pool)), min(self.rows, len(self.pool)))]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the number of the step; the rows follow from them."""
        return {"seed": self.seed, "update": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.seed, self.step, self.added_this_step = int(state["seed"]), int(state["update"]), False


class TaskKl(Mitigation):
    """Add strength * the mean divergence over the trained tokens of each step, from the logits of its loss.

    Args:
        strength: factor of the divergence.
        direction: see `token_kl`.
        temperature: see `token_kl`.
        drop_target: whether the target token is removed from both distributions (arXiv:2605.29498). The divergence then
            preserves the proportions among all other tokens, and leaves the target's probability to the task.
    """

    def __init__(self, strength: float, direction: Direction, temperature: float, drop_target: bool) -> None:
        self.strength, self.direction, self.temperature = strength, direction, temperature
        self.drop_target = drop_target
        self.base_copy: PreTrainedModel | None = None  # read for the memory of the report

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Copy the base model before the first stage."""
        from harness_mitigations import base_model

        self.base_copy = base_model.snapshot_base(model)

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the copy of the trained weights; an adapter needs none."""
        return _bytes_of_base_copy(model, itemsize)

    def token_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]
    ) -> Callable[[torch.Tensor, slice], torch.Tensor] | None:
        """Return the divergence at each trained token; the base model's layers are run once for the batch."""
        from harness.training.loss import chunked_target_logits, target_tokens
        from harness_mitigations import base_model

        if self.strength == 0:
            return None
        with base_model.frozen_base_model(model) as base:
            base_chunks = chunked_target_logits(base, batch)
        targets = target_tokens(batch["labels"]) if self.drop_target else None

        def divergence(logits: torch.Tensor, place: slice) -> torch.Tensor:  # (n, V) -> (n,)
            dropped = None if targets is None else targets[place].to(logits.device)
            base_logits = base_chunks.chunk(place)
            return self.strength * token_kl(logits, base_logits, self.direction, self.temperature, dropped)

        return divergence


def _bytes_of_base_copy(model: PreTrainedModel, itemsize: int) -> int:
    if hasattr(model, "peft_config"):
        return 0
    from harness_mitigations import base_model

    return itemsize * sum(weight.numel() for weight in base_model.copied_weights(model))


def _rank_and_world_size() -> tuple[int, int]:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
