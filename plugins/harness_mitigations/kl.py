"""Mitigation `kl`: the model's next-token distributions are regularized towards those of the base model.

On general rows (the default) it preserves what the task does not cover. On the task's own tokens it is learning without
forgetting (LwF, arXiv:1606.09282), which works against the task. Direction and temperature are options: the same
strength has another effect for another divergence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import Component, seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

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
        },
    ),
}

Direction = Literal["forward", "reverse"]


def token_kl(logits: Tensor, base_logits: Tensor, direction: Direction, temperature: float = 1.0) -> Tensor:
    """Return the divergence between the next-token distributions of a model and its base at each of N positions.

    Args:
        logits: (N, V), the model's.
        base_logits: (N, V), the base model's.
        direction: `forward`: KL(base || model), low only where the model covers everything that the base predicts;
            `reverse`: KL(model || base), low only where the model predicts nothing that the base would not.
        temperature: tau of both distributions. The result is multiplied by tau^2, so that the gradient keeps its scale.

    Returns:
        (N,) float32, in nats, with its graph.
    """
    from torch.nn import functional

    log_p, base_log_p = (_apply_temperature(values, temperature).log_softmax(-1) for values in (logits, base_logits))
    target, prediction = (base_log_p, log_p) if direction == "forward" else (log_p, base_log_p)
    return functional.kl_div(prediction, target, reduction="none", log_target=True).sum(-1) * temperature**2


def _apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1 else logits.float() / temperature


def build_kl_mitigation(
    on: Literal["general", "task"],
    source: str | None,
    rows: int,
    strength: float,
    direction: Direction,
    temperature: float,
) -> Mitigation:
    """Return the mitigation for the tokens that `on` names; `source` and `rows` apply to `general` only."""
    if on == "task":
        return TaskKl(strength, direction, temperature)
    return GeneralKl(source, rows, strength, direction, temperature)


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
    """

    def __init__(
        self, source: str | None, rows: int, strength: float, direction: Direction, temperature: float
    ) -> None:
        self.source, self.rows, self.strength = source, rows, strength
        self.direction, self.temperature = direction, temperature
        self.pool: Sequence[TokenizedExample] = ()
        self.stage_name = ""
        self.seed = self.step = 0
        self.added_this_step = False

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Require a source."""
        if self.source is None:
            raise HarnessError(
                "mitigations.kl.source",
                "no source is given for the rows of the divergence",
                'name one of general conversations, or set mitigations.kl.on to "task"',
            )

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
        base_model.snapshot_base(model)
        self.stage_name, self.seed, self.step, self.added_this_step = stage.name, seed, 0, False

    def extra_loss(self, model: PreTrainedModel, token_fraction: float) -> torch.Tensor | None:
        """Return the term of this process's rows with the first micro-batch of a step; None with the others."""
        if self.added_this_step or self.strength == 0:
            return None
        self.added_this_step = True
        from harness.training.loss import target_logits
        from harness_mitigations import base_model

        rank, world_size = _rank_and_world_size()
        sampled_rows = self._sample_rows()
        token_count = sum(row.loss_tokens for row in sampled_rows)
        local_rows = sampled_rows[rank::world_size]
        if not local_rows:
            return None
        batch = base_model.collate_rows(model, local_rows)
        with base_model.frozen_base_model(model) as base:
            base_logits = target_logits(base, batch)  # (N, V)
        logits = target_logits(model, batch)  # (N, V)
        return self.strength * token_kl(logits, base_logits, self.direction, self.temperature).sum() / token_count

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
    """Add strength * the mean divergence over the trained tokens of each batch, from the logits of its loss.

    Args:
        strength: factor of the divergence.
        direction: see `token_kl`.
        temperature: see `token_kl`.
    """

    requires_logits = True

    def __init__(self, strength: float, direction: Direction, temperature: float) -> None:
        self.strength, self.direction, self.temperature = strength, direction, temperature

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Copy the base model before the first stage."""
        from harness_mitigations import base_model

        base_model.snapshot_base(model)

    def batch_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the mean over the micro-batch's trained tokens; None if it has none."""
        from harness.training.loss import target_logits
        from harness_mitigations import base_model

        if self.strength == 0 or not len(logits):
            return None
        with base_model.frozen_base_model(model) as base:
            base_logits = target_logits(base, batch)  # (N, V)
        return self.strength * token_kl(logits, base_logits, self.direction, self.temperature).mean()


def _rank_and_world_size() -> tuple[int, int]:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
