"""LoRA: only a low-rank change of the weights can be learned (Hu et al., 2021, arXiv:2106.09685).

A weight W of shape (d, k) becomes W + (alpha / rank) B A, with A of shape (rank, k) and B of shape (d, rank), B zero at
the start: training begins at the base model exactly, and the base weights never move, so the base model is there for
the asking (`harness.model.reference`). How much is forgotten still grows with learning rate and steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import seeds
from harness.contracts import Mitigation
from harness.errors import HarnessError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lora(Mitigation):
    """Put an adapter on the model before the first stage; every stage trains the same one.

    rank: of the change. alpha: its scale is alpha / rank; None: twice the rank. dropout: share of an adapter's inputs
    set to zero in training. target: "all-linear", every linear layer but the head, or the names of modules.
    """

    def __init__(self, rank: int, alpha: float | None, dropout: float, target: str | Sequence[str]) -> None:
        self.rank, self.dropout = rank, dropout
        self.alpha = 2 * rank if alpha is None else alpha
        # To peft a string that is not "all-linear" is a regular expression; here it is a name.
        self.target = target if target == "all-linear" else [target] if isinstance(target, str) else list(target)

    def model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model within its adapter; adapter weights are float32 also where the base is bfloat16.

        Raises HarnessError when the model has an adapter already, or no module of that name.
        """
        import torch
        from peft import LoraConfig, PeftModel, get_peft_model

        if isinstance(model, PeftModel):
            raise HarnessError(
                "mitigations.lora",
                "the model already carries an adapter",
                "take out one of the mitigations that add one, or merge the adapter of model.path into its base first",
            )
        if "lm_head" in self.target:
            raise HarnessError(
                "mitigations.lora.target",
                "the head cannot be adapted",
                "take 'lm_head' out; 'all-linear' leaves it out",
            )
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.target,
        )
        # The first A depends on the seed alone, not on how many random numbers were drawn before.
        with torch.random.fork_rng(), warnings.catch_warnings():
            # peft asks transformers for a name that transformers has deprecated
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            torch.manual_seed(seeds.derive(torch.initial_seed(), "lora"))
            try:
                return get_peft_model(model, config)  # type: ignore[return-value]
            except ValueError as error:
                raise HarnessError(
                    "mitigations.lora.target", str(error), "name modules of this model, or use 'all-linear'"
                ) from error
