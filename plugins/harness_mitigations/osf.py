"""OSF: the strongest directions of each weight are frozen, the rest is trained (arXiv:2504.07097, peft's `osf`).

W = U S V^T is decomposed at the beginning of every stage, as it has come to be: what the stages before learned is then
among what is held. Its largest singular triples stay; the others, U', S', V', are trained, orthogonal to what is
frozen. peft projects the gradients of U' and V'; an optimizer that scales each number by itself, as AdamW does, turns a
projected gradient into a step that is not. So the weights are projected too, after each update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def remove_frozen_directions(columns: Tensor, trainable_basis: Tensor, frozen_basis: Tensor | None) -> Tensor:
    """The columns without their part in the frozen directions.

    columns: (d, r). trainable_basis: (d, r), orthonormal, what is not frozen of the decomposition; read only where
    `frozen_basis` is None, and then all of the frozen ones' complement. frozen_basis: (d, R), orthonormal.
    """
    return (
        trainable_basis @ (trainable_basis.T @ columns)
        if frozen_basis is None
        else columns - frozen_basis @ (frozen_basis.T @ columns)
    )


class Osf(Mitigation):
    """Train each layer within the directions that it uses least. preserve: share of the singular values that is frozen.

    target: as in `lora`. The base weights stay beside it: with the adapter off the model is the base model, whatever
    was decomposed since. Nothing is kept with a checkpoint: what a stage's weights are decomposed into depends on where
    the stage began alone.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    def __init__(self, preserve: float, target: str | Sequence[str]) -> None:
        self.preserve, self.target = preserve, adapter_common.to_target_modules(target)

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a second adapter."""
        adapter_common.require_single_adapter("osf", others)

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model within its adapter. Raises HarnessError when it has one already, or no module of that name."""
        from peft import OSFConfig

        from harness.model import svd_subspaces

        # Without a task type the generic PEFT model of 0.21 does not know `generate`'s arguments.
        config = OSFConfig(task_type="CAUSAL_LM", effective_rank=float(self.preserve), target_modules=self.target)
        made = adapter_common.add_adapter("osf", model, config)
        for layer in svd_subspaces.subspace_layers(made).values():
            if layer.get_base_layer().weight.dtype.itemsize < 4:  # peft rounds the directions to the base's format
                svd_subspaces.decompose_layer(layer)
        return made

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Decompose anew every weight that has moved since it was; the model computes the same afterwards."""
        from harness.model import svd_subspaces

        for layer in svd_subspaces.subspace_layers(model).values():
            if svd_subspaces.is_modified(layer):
                svd_subspaces.decompose_layer(layer)

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Take out of U' and V' what the update has put into the frozen directions."""
        import torch

        from harness.model import svd_subspaces

        with torch.no_grad():
            for layer in svd_subspaces.subspace_layers(model).values():
                (u, _, v), (begun_u, _, begun_v) = (
                    svd_subspaces.trainable_svd_factors(layer),
                    svd_subspaces.removed_component(layer),
                )
                frozen_u, frozen_v = svd_subspaces.frozen_singular_vectors(layer)
                u.copy_(remove_frozen_directions(u, begun_u, frozen_u))
                v.copy_(remove_frozen_directions(v.T, begun_v.T, None if frozen_v is None else frozen_v.T).T)
