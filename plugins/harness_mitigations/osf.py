"""OSF: the strongest directions of each weight are frozen, the rest is trained (arXiv:2504.07097, peft's `osf`).

W = U S V^T is decomposed once, before the first stage. Its largest singular triples stay; the others, U', S', V', are
trained, orthogonal to what is frozen. peft projects the gradients of U' and V'; an optimizer that scales each number
by itself, as AdamW does, turns a projected gradient into a step that is not. So the weights are projected too, after
each update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.contracts import Mitigation
from harness_mitigations import adapters

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def orthogonal(columns: Tensor, free: Tensor, frozen: Tensor | None) -> Tensor:
    """The columns without their part in the frozen directions.

    columns: (d, r). free: (d, r), orthonormal, what is not frozen of the decomposition. frozen: (d, R), orthonormal;
    None where `free` spans all of their complement.
    """
    return free @ (free.T @ columns) if frozen is None else columns - frozen @ (frozen.T @ columns)


class Osf(Mitigation):
    """Train each layer within the directions that it uses least. preserve: share of the singular values that is frozen.

    target: as in `lora`. The base weights stay beside it: with the adapter off the model is the base model.
    """

    order: ClassVar[int] = adapters.ORDER
    adapts: ClassVar[bool] = True

    def __init__(self, preserve: float, target: str | Sequence[str]) -> None:
        self.preserve, self.target = preserve, adapters.targets(target)

    def check(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a second adapter."""
        adapters.alone("osf", others)

    def model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model within its adapter. Raises HarnessError when it has one already, or no module of that name."""
        from peft import OSFConfig

        # Without a task type the generic PEFT model of 0.21 does not know `generate`'s arguments.
        config = OSFConfig(task_type="CAUSAL_LM", effective_rank=float(self.preserve), target_modules=self.target)
        return adapters.adapt("osf", model, config)

    def after_step(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Take out of U' and V' what the update has put into the frozen directions."""
        import torch
        from peft.tuners.osf import OSFLayer

        with torch.no_grad():
            for layer in (part for part in model.modules() if isinstance(part, OSFLayer)):
                trained: Any = layer.osf_svd_params["default"]
                u, v = trained["U_low"], trained["V_low"]
                u.copy_(orthogonal(u, layer._osf_U_low_init["default"], _of(layer._osf_U_high)))
                frozen = _of(layer._osf_V_high)
                v.copy_(orthogonal(v.T, layer._osf_V_low_init["default"].T, None if frozen is None else frozen.T).T)


def _of(buffers: Any) -> Tensor | None:
    """peft keeps the frozen directions only of the side on which the free ones do not say what they are."""
    return dict(buffers.items()).get("default")
