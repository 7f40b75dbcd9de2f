"""KL to the base model: what the model would say on some tokens is to stay what it said before training.

On general rows (the default) it holds what the task does not speak of; on the task's own tokens it is learning without
forgetting (LwF, arXiv:1606.09282), which works against the task. Divergence and temperature are named, since the same
weight means another thing for another one. Knows nothing of where the base model comes from (`base_model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

Direction = Literal["forward", "reverse"]


def token_kl(logits: Tensor, base_logits: Tensor, direction: Direction, temperature: float = 1.0) -> Tensor:
    """The divergence between the next-token distributions of a model and its base, at each of N positions, in nats.

    logits, base_logits: (N, V), the model's and the base model's. forward: KL(base || model), which wants the model to
    cover all that the base said; reverse: KL(model || base), which wants it to say nothing that the base would not. Of
    distributions at this temperature, times its square, so that the gradient keeps its size. float32, with the graph.
    """
    from torch.nn import functional

    ours, theirs = (_apply_temperature(given, temperature).log_softmax(-1) for given in (logits, base_logits))
    of, to = (theirs, ours) if direction == "forward" else (ours, theirs)
    return functional.kl_div(to, of, reduction="none", log_target=True).sum(-1) * temperature**2


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
    """The mitigation that holds the model on `rows` rows of `source` an update, or on the task's own trained tokens."""
    if on == "task":
        return TaskKl(strength, direction, temperature)
    return GeneralKl(source, rows, strength, direction, temperature)


class GeneralKl(Mitigation):
    """Add strength * the mean divergence over the trained tokens of some rows of `source`, drawn anew each update.

    rows: an update, all processes together, drawn without repetition within it by the seed, the stage and the update's
    number. The mean is over all their trained tokens, however they are padded or the update is cut into micro-batches.
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
        """Refuse to run without rows to hold the model on."""
        if self.source is None:
            raise HarnessError(
                "mitigations.kl.source",
                "no source says what the model is held on",
                'name one of general conversations, or set mitigations.kl.on to "task"',
            )

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Remember the base model before the first stage, and where the rows are."""
        import torch

        from harness_mitigations import base_model

        self.pool = rows.get(self.source or "", ())
        if not self.pool:
            what = f"'{self.source}' has no row to hold the model on"
            raise HarnessError("mitigations.kl.source", what, "name a source that has rows to train on")
        base_model.snapshot_base(model)
        self.stage_name, self.seed, self.step, self.added_this_step = stage.name, torch.initial_seed(), 0, False

    def extra_loss(self, model: PreTrainedModel, token_fraction: float) -> torch.Tensor | None:
        """The whole term with the first micro-batch of an update, of this process's part of the rows."""
        if self.added_this_step or self.strength == 0:
            return None
        self.added_this_step = True
        from harness.training.loss import target_logits
        from harness_mitigations import base_model

        rank, processes = _rank_and_world_size()
        chosen = self._sample_rows()
        tokens = sum(row.loss_tokens for row in chosen)
        mine = chosen[rank::processes]
        if not mine:
            return None
        batch = base_model.collate_rows(model, mine)
        with base_model.frozen_base_model(model) as base:
            theirs = target_logits(base, batch)
        ours = target_logits(model, batch)
        return self.strength * token_kl(ours, theirs, self.direction, self.temperature).sum() / tokens

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """The next update draws other rows."""
        self.step, self.added_this_step = self.step + 1, False

    def _sample_rows(self) -> list[TokenizedExample]:
        draw = seeding.create_generator(self.seed, "kl", self.stage_name, self.step)
        return [self.pool[index] for index in draw.sample(range(len(self.pool)), min(self.rows, len(self.pool)))]

    def state_dict(self) -> dict[str, Any]:
        """The seed and the number of the update, from which the rows follow."""
        return {"seed": self.seed, "update": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.seed, self.step, self.added_this_step = int(state["seed"]), int(state["update"]), False


class TaskKl(Mitigation):
    """Add strength * the mean divergence over the trained tokens of each batch, on the logits that its loss is of."""

    requires_logits = True

    def __init__(self, strength: float, direction: Direction, temperature: float) -> None:
        self.strength, self.direction, self.temperature = strength, direction, temperature

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Remember the base model before the first stage."""
        from harness_mitigations import base_model

        base_model.snapshot_base(model)

    def batch_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> torch.Tensor | None:
        """The mean over the micro-batch's trained tokens; None where there is none."""
        from harness.training.loss import target_logits
        from harness_mitigations import base_model

        if self.strength == 0 or not len(logits):
            return None
        with base_model.frozen_base_model(model) as base:
            theirs = target_logits(base, batch)
        return self.strength * token_kl(logits, theirs, self.direction, self.temperature).mean()


def _rank_and_world_size() -> tuple[int, int]:
    """This process's number and how many there are."""
    from torch import distributed

    there = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if there else (0, 1)
