"""The base class of mitigations: methods that take part in a run, each with a default that changes nothing.

The core calls them in this order:

| method                        | called                                         | typical use                    |
|-------------------------------|------------------------------------------------|--------------------------------|
| `check_compatible`            | before anything is loaded                      | reject other mitigations       |
| `transform_stages`            | before anything is loaded                      | choose data and settings       |
| `prepare_model`               | before the first stage, and for a new adapter  | add an adapter, freeze weights |
| `on_stage_start`              | at the start of each stage                     | copy weights, measure          |
| `filter_labels`               | every micro-batch, before any loss of the step | remove targets from the loss   |
| `batch_penalty`, `extra_loss` | every micro-batch                              | add to the loss                |
| `add_weight_penalty`          | every step, before or after clipping           | add to the gradient            |
| `stage_stats`                 | once a stage, in its first step                | report what was measured       |
| `on_step_end`                 | every step, after the optimizer                | read or change the weights     |
| `on_stage_end`                | at the end of each stage                       | learn from the finished stage  |
| `variants`                    | at the end of each stage, last                 | offer other weights            |

`state_dict` is called at checkpoints and between stages, `load_state_dict` after `on_stage_start` of a resumed run or
before the `on_stage_start` of a stage with new instances.

Random choices are made from the `seed` that `prepare_model` and `on_stage_start` receive, with `harness.seeding`.
Global random state is not read: the same seed gives the same result, however many random numbers were drawn before.

This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.types import Stage, TokenizedExample


class Mitigation:
    """One method to forget less. Every method's default changes nothing.

    A subclass's module imports nothing heavy at its top: `harness validate` creates mitigations to build the plan.
    """

    priority: ClassVar[int] = 0
    """Mitigations are applied in ascending priority, then by name; never in the order of the JSON file."""

    adds_adapter: ClassVar[bool] = False
    """Whether `prepare_model` adds an adapter to the model."""

    requires_logits: bool = False
    """Whether `batch_penalty` is called. If so, the logits of the trained tokens are materialized, which a fused head
    would avoid."""

    penalty_timing: Literal["before_clip", "after_clip"] = "after_clip"
    """When `add_weight_penalty` is called.

    `before_clip`: before the gradient is clipped. Task gradient and penalty are clipped together, as if the penalty
    were in the loss. `after_clip`: after it. The penalty neither shrinks the task's step nor is clipped.
    """

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject a combination with other mitigations of the spec. Reads options alone; nothing is loaded yet.

        Args:
            others: the other mitigations by name.

        Raises:
            HarnessError: one of them cannot be combined with this one, or options contradict each other.
        """

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages with other data, shares or settings.

        The result must depend on the options alone: the plan is built by another instance than the one that trains.

        Args:
            stages: the stages of the plan, in order.

        Returns:
            As many stages, with the same names, in the same order.
        """
        return stages

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Decide which weights are trainable, e.g. by an adapter.

        Called once before the first stage, and again before a later stage that begins with a new adapter.

        Args:
            model: the model as loaded, or as earlier mitigations prepared it.
            seed: seed of everything random here, in [0, 2**32). Derive one for each purpose with
                `harness.seeding.derive_seed(seed, "<name>", …)`.

        Returns:
            The model to train; it may be a wrapper of the one received.
        """
        return model

    def on_stage_start(
        self,
        stage: Stage,
        model: PreTrainedModel,
        rows: Mapping[str, Sequence[TokenizedExample]],
        *,
        seed: int,
    ) -> None:
        """Record where the stage begins.

        Args:
            stage: the stage that begins.
            model: the model with the weights that the stage begins with.
            rows: tokenized training rows of the sources that the options name, by source.
            seed: seed of everything random in this stage, `on_stage_end` included, in [0, 2**32). Each stage has its
                own; it is the same when the stage is resumed. A `prepare_model` for this stage received the same seed.
        """

    def filter_labels(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Return labels to train on instead of the batch's.

        Called without gradients for each micro-batch of a step before any of their losses is computed: the mean over
        trained tokens counts the remaining ones.

        Args:
            model: the model as it is at this step.
            batch: `input_ids` and `labels` of shape (B, T).

        Returns:
            Labels of shape (B, T), -100 where not trained; None: those of the batch.
        """
        return None

    def batch_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> torch.Tensor | None:
        """Return a term of the loss from this micro-batch. Called only where `requires_logits` is set.

        Args:
            model: the model as it is at this step.
            batch: `input_ids` and `labels` of shape (B, T).
            logits: (N, V), the predictions of the N trained tokens in the order of
                `labels[:, 1:][labels[:, 1:] != -100]`. N may be 0.

        Returns:
            A scalar with its graph, averaged over the micro-batch's trained tokens; None: nothing to add.
        """
        return None

    def extra_loss(self, model: PreTrainedModel, token_fraction: float) -> torch.Tensor | None:
        """Return a term of the loss from rows that are not in the micro-batch.

        Called for every micro-batch. The results of all calls of a step, in all processes, are summed.

        Args:
            model: the model as it is at this step.
            token_fraction: this micro-batch's fraction of the step's trained tokens, in [0, 1]. The fractions of a step
                sum to 1.

        Returns:
            A scalar with its graph; None: nothing to add.
        """
        return None

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Add the gradient of a function of the weights to their `.grad`, in place.

        Called once a step, without gradients, in every process alike. The gradients are those of the whole step, over
        all micro-batches and processes, without loss scaling. `penalty_timing` chooses between before and after
        clipping. A mitigation that changes the weights in `on_step_end` only returns the value.

        Args:
            model: the model with its gradients.

        Returns:
            The value of the penalty, to be logged as `penalty/<mitigation>`; None: nothing to log.
        """
        return None

    def stage_stats(self) -> Mapping[str, float]:
        """Return numbers measured at the start of the stage.

        Returns:
            Key -> value; logged as `<mitigation>/<key>` with the stage's first step. Keys consist of letters, digits,
            `_` and `.`.
        """
        return {}

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Read or change the weights after the optimizer's step, without gradients.

        Args:
            model: the model with its new weights.
            learning_rate: that of this step; 0 when loss scaling found infinite gradients and the step was skipped.
        """

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Learn from the stage that has ended.

        Args:
            stage: the stage that has ended.
            model: the model with the weights that the stage ends with.
            rows: the rows that the stage trained on.
        """

    def variants(self, model: PreTrainedModel) -> Iterator[str]:
        """Yield the names of other weights of the stage that has ended; each is evaluated in addition.

        Called after every mitigation's `on_stage_end`. While a name is yielded the model has that variant's weights.
        When the iterator ends or is closed it has its own again, bit for bit.

        Args:
            model: the model, changed in place.

        Yields:
            The name of a variant, e.g. `alpha=0.5`.
        """
        return iter(())

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is stored with each checkpoint.

        It is complete between any two steps and between stages: an instance that loads it, within a stage after
        `on_stage_start`, continues exactly as this one would.

        Returns:
            Tensors, numbers and strings, nested in dicts.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state.

        Args:
            state: the result of `state_dict`.
        """
