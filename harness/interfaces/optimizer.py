"""The base class of optimizers, named by `train.optimizer`. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.interfaces import result_checks
from harness.interfaces.guard import GuardedComponent, ResultCheck

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Optimizer(GuardedComponent):
    """Builds the torch optimizer of a stage. Its state is stored in checkpoints through `state_dict` of torch."""

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "build": result_checks.check_optimizer,
        "param_groups": result_checks.check_param_groups,
        "check_available": None,
    }
    required_members = ("build",)

    bytes_per_weight: ClassVar[float] = 8.0
    """Bytes of state for each trained weight, for the estimate of `harness plan`."""

    works_on_shards: ClassVar[bool] = False
    """Whether the weights may be divided among processes (`train.sharding`).

    True if the step of an element of a weight depends on that element alone.
    """

    def build(self, param_groups: Sequence[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Return the optimizer of a stage.

        Args:
            param_groups: Groups as torch takes them. Each has `params`, its weights, and its own `lr` and
                `weight_decay`. Together they have every trainable weight once.
            settings: The stage's `train`, for what the groups do not say.

        Returns:
            An optimizer of exactly these weights.
        """
        raise NotImplementedError

    def param_groups(self, model: PreTrainedModel) -> Sequence[Mapping[str, Any]]:
        """Return settings of single weights; see `Mitigation.param_groups`, whose settings are added to these.

        Args:
            model: The model to train.
        """
        return ()

    def check_available(self) -> None:
        """Check that everything the optimizer needs is installed. Called before training starts.

        Raises:
            HarnessError: Something is missing.
        """
