"""The base class of mitigations: the verbs by which one takes part in a run, in the order in which they are called.

    transform_stages, check_compatible    before anything is loaded
    prepare_model                         once, before the first stage
    on_stage_start, stage_stats           at each stage
        filter_labels                     every micro-batch, before any loss of the update
        batch_penalty, extra_loss         every micro-batch
        add_weight_penalty                every update, before or after clipping (`penalty_timing`)
        on_step_end                       every update, after the optimizer's step
    on_stage_end, variants                at each stage
    state_dict, load_state_dict           at a checkpoint

Knows no room, and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.types import Stage, TokenizedExample


class Mitigation:
    """One way to forget less. Every method's default changes nothing.

    Its module imports nothing heavy at the top: `validate` makes mitigations to fold their plans.
    """

    priority: ClassVar[int] = 0
    """Mitigations are applied in this order, then by name; never in the order of the JSON file."""

    adds_adapter: ClassVar[bool] = False
    """Whether `prepare_model` puts an adapter on the model."""

    requires_logits: bool = False
    """Whether `batch_penalty` is to be called; with it the logits of the trained tokens are built, which a fused
    head would not."""

    penalty_timing: Literal["before_clip", "after_clip"] = "after_clip"
    """Whether `add_weight_penalty` comes before the gradient is clipped, so that task and pull are clipped as one,
    which is what a penalty in the loss comes to, or after, so that the pull neither takes from the task's step nor is
    cut."""

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Which data, in what shares. Depends on the options alone: the instance that trains is another one."""
        return stages

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Raise HarnessError when one of the spec's other mitigations makes no sense beside this one. others: by name.

        Looks at options alone, before anything is loaded.
        """

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Which weights can move: called once, before the first stage."""
        return model

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Remember where this stage began. rows: tokenised training rows of the sources that the options name."""

    def filter_labels(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Labels of shape (B, T) to train on instead of the batch's; None: those of the batch.

        Called without gradients for each micro-batch of an update before any of their losses is computed, so that a
        mean over trained tokens counts those that are left. batch: `input_ids` and `labels` of shape (B, T).
        """
        return None

    def extra_loss(self, model: PreTrainedModel, token_fraction: float) -> torch.Tensor | None:
        """A scalar to add to the loss of a micro-batch, with its graph, from rows that are not in it. None: nothing.

        Called for every micro-batch; what all calls of an update give, in all processes, is summed. token_fraction: of
        this micro-batch in the update's trained tokens, in [0, 1]; those of an update sum to 1.
        """
        return None

    def stage_stats(self) -> Mapping[str, float]:
        """What it found out at the beginning of the stage, in numbers; logged as `<its name>/<key>` with the stage's
        first update. Keys of letters, digits, `_` and `.`."""
        return {}

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Add the gradient of a function of the weights alone to their `.grad`, in place, and return its value.

        Called once an update, without gradients, in every process alike: the gradients are those of the whole update,
        over all its micro-batches and processes, free of loss scaling. `penalty_timing` says whether before or after
        clipping. None: there is nothing to log. A mitigation that moves the weights in `on_step_end` returns a value
        alone.
        """
        return None

    def batch_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> torch.Tensor | None:
        """A scalar of this micro-batch, averaged over its trained tokens, with its graph. None: nothing to add.

        batch: `input_ids` and `labels` of shape (B, T). logits: (N, V), those that predict the N trained tokens, in the
        order of `labels[:, 1:][labels[:, 1:] != -100]`. N may be 0.
        """
        return None

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Look at, or change, the weights after the optimizer's step of an update, without gradients.

        learning_rate: of this update; 0 when loss scaling met infinite gradients and the step was left out.
        """

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Learn from the stage just finished. rows: the rows that it trained on."""

    def variants(self, model: PreTrainedModel) -> Iterator[str]:
        """Other weights that the stage just finished offers, to be measured beside its own: a name for each.

        To be called after every mitigation's `on_stage_end`. While a name is out the model has that variant's weights;
        when the iterator ends or is closed it has its own again, bit for bit.
        """
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """What must be kept with each checkpoint: tensors, numbers and strings, nested in dicts.

        Complete at any time between two updates and between two stages: who loads it, after `on_stage_start` if a stage
        is going on, does from there on what the one that gave it would have done.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
