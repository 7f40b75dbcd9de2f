"""Mitigation `osf`: the strongest directions of each weight are frozen, the rest is trained (arXiv:2504.07097).

At the start of every stage each weight is decomposed as the previous stage left it, W = U S V^T, so what that stage
learned is protected too. The largest singular triples are frozen. The others, U', S', V', are trained, orthogonal to
the frozen ones. peft's `osf` projects the gradients of U' and V'. An optimizer that scales each element by itself, such
as AdamW, turns a projected gradient into a step that is not projected. So the weights are projected too, after each
step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness import Component
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "osf": Component(
        summary="Trains each weight only in the directions that it uses least (OSF, arXiv:2504.07097).",
        factory="harness_mitigations.osf:Osf",
        options={
            "preserve": {
                "type": "number",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.5,
                "description": "Share of each weight's singular values, the largest, that is frozen.",
            },
            "target": adapter_common.TARGET_OPTION,
        },
        typical_ranges={"train.learning_rate": (1e-6, 2e-4)},
    ),
}


def remove_frozen_directions(columns: Tensor, trainable_basis: Tensor, frozen_basis: Tensor | None) -> Tensor:
    """Return the columns without their component in the frozen directions.

    Args:
        columns: (d, r).
        trainable_basis: (d, r), orthonormal, the trainable directions of the decomposition. Used only where
            `frozen_basis` is None; it is then the complement of the frozen directions.
        frozen_basis: (d, R), orthonormal.
    """
    if frozen_basis is None:
        return trainable_basis @ (trainable_basis.T @ columns)
    return columns - frozen_basis @ (frozen_basis.T @ columns)


class Osf(Mitigation):
    """Train each weight in the directions that it uses least.

    The base weights are kept: with the adapter disabled the model is the base model, whatever was decomposed since.
    Checkpoints need no state: the decomposition of a stage depends only on the weights that it began with.

    Args:
        preserve: share of the singular values that is frozen, in (0, 1).
        target: "all-linear", every linear layer but the output head, or the names of modules.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True
    supports_quantized_weights: ClassVar[bool] = False

    def __init__(self, preserve: float, target: str | Sequence[str]) -> None:
        self.preserve, self.target = preserve, adapter_common.to_target_modules("osf", target)

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject a second adapter."""
        adapter_common.require_single_adapter("osf", others)

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Add the adapter.

        Raises:
            HarnessError: the model has an adapter, or `target` names no module or one that is not a linear layer.
        """
        from peft import OSFConfig

        from harness.model import svd_subspaces
        from harness_mitigations import linear_layers

        linear_layers.reject_conv1d("osf", model, self.target)
        # Without a task type the generic PEFT model of 0.21 does not know `generate`'s arguments.
        config = OSFConfig(task_type="CAUSAL_LM", effective_rank=float(self.preserve), target_modules=self.target)
        peft_model = adapter_common.add_adapter("osf", model, config, seed=seed)
        layers = svd_subspaces.subspace_layers(peft_model)
        for target in [] if isinstance(self.target, str) else self.target:  # peft leaves out what it does not support
            if not any(linear_layers.is_target(path, [target]) for path in layers):
                names = json.dumps(linear_layers.adaptable_names(model))
                raise HarnessError(
                    "mitigations.osf.target", f"'{target}' is not a linear layer", f"name some of {names}"
                )
        for layer in layers.values():
            if layer.get_base_layer().weight.dtype.itemsize < 4:  # peft rounds the directions to the base's dtype
                svd_subspaces.decompose_layer(layer)
        return peft_model

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Decompose every weight that has changed since its last decomposition; the model still computes the same."""
        from harness.model import svd_subspaces

        for layer in svd_subspaces.subspace_layers(model).values():
            if svd_subspaces.is_modified(layer):
                svd_subspaces.decompose_layer(layer)

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Remove from U' and V' what the step has added in the frozen directions."""
        import torch

        from harness.model import svd_subspaces

        with torch.no_grad():
            for layer in svd_subspaces.subspace_layers(model).values():
                u, _, v = svd_subspaces.trainable_svd_factors(layer)  # (d, r), (r,), (r, k)
                initial_u, _, initial_v = svd_subspaces.removed_component(layer)
                frozen_u, frozen_v = svd_subspaces.frozen_singular_vectors(layer)
                u.copy_(remove_frozen_directions(u, initial_u, frozen_u))
                v.copy_(remove_frozen_directions(v.T, initial_v.T, None if frozen_v is None else frozen_v.T).T)
