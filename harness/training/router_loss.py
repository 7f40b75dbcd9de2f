"""The loss that balances the experts of a mixture of experts: `train.router_loss`.

A router that sends most tokens to few experts leaves the others untrained. The loss is that of transformers, by the
model's own function (Switch Transformer, arXiv:2101.03961, equations 4 to 6). With E experts, over all layers:

    E Σ_e f_e P_e      f_e: choices of expert e per token; P_e: mean probability of expert e

It is smallest, the number of experts per token, where all experts are chosen alike. Padding is left out of both means.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.training.model_state import unwrap_peft_model

FROM_CONFIG = "config"
"""Value of the setting: the coefficient that the model's config has."""

LOSS_NAME = "router"
"""The name of the loss in the log: `penalty/router`."""

WHERE = "train.router_loss"


class RouterLoss:
    """Computes the loss of a micro-batch from the router logits of its forward pass.

    Attributes:
        coefficient: The factor of the loss.
    """

    def __init__(self, model: nn.Module, coefficient: float | str) -> None:
        """Prepare to compute.

        Args:
            model: The model, with or without an adapter, before a trainer changes its config.
            coefficient: The factor of the loss, or `config`.

        Raises:
            HarnessError: Transformers has no such loss for the model, or its config has no coefficient.
        """
        causal_lm: Any = unwrap_peft_model(model)
        config = causal_lm.config.get_text_config()
        function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
        sizes = [getattr(causal_lm, name, None) for name in ("num_experts", "num_experts_per_tok")]
        if function is None or not all(sizes) or not callable(getattr(causal_lm, "get_decoder", None)):
            what = f"transformers has no loss that balances the experts of a {config.model_type} model"
            raise HarnessError(WHERE, what, "set it to 0")
        if coefficient == FROM_CONFIG:
            coefficient = getattr(config, "router_aux_loss_coef", None) or 0.0
            if not coefficient:
                what = "the model's config has no router_aux_loss_coef"
                raise HarnessError(WHERE, what, "set it to a number, e.g. 0.001")
        self.coefficient = float(coefficient)
        self._function, self._sizes, self._decoder = function, sizes, causal_lm.get_decoder()
        self._logits: tuple[Tensor, ...] | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within the context, the router logits of the first pass with a graph are recorded."""
        self._logits = None

        def request_logits(_: nn.Module, arguments: Any, options: dict[str, Any]) -> Any:
            return arguments, {**options, "output_router_logits": True}

        def record(_: nn.Module, __: Any, output: Any) -> None:
            if self._logits is None and torch.is_grad_enabled():
                self._logits = output.router_logits

        handles = [
            self._decoder.register_forward_pre_hook(request_logits, with_kwargs=True),
            self._decoder.register_forward_hook(record),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def of_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss of the recorded pass with its graph, a float32 scalar. batch: as `Collator` returns it."""
        logits, self._logits = self._logits, None
        if not logits:
            raise RuntimeError("the pass has returned no router logits")
        value: Tensor = self._function(logits, *self._sizes, batch.get("attention_mask"))
        return self.coefficient * value.float()


def create_router_loss(model: nn.Module, coefficient: float | str) -> RouterLoss | None:
    """Return the loss for a stage's `router_loss`; None if it is 0. See `RouterLoss`."""
    return None if coefficient == 0 else RouterLoss(model, coefficient)
