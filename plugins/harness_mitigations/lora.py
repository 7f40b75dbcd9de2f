"""Mitigation `lora`: only a low-rank change of the weights is trained (Hu et al., 2021, arXiv:2106.09685).

A weight W of shape (d, k) becomes W + s B A, with A of shape (rank, k) and B of shape (d, rank). B is zero at the
start, so training begins at the base model exactly. The base weights never change: the base model stays available
(`harness.model.save.adapter_disabled`). Forgetting still grows with learning rate and steps.

PiSSA, OLoRA and CorDA initialize A and B from the weight itself (`lora_init`) and subtract s B0 A0 from W. Here it is
not subtracted from W, which would change the base model and round the result to its dtype. Instead -s B0 A0 is stored
as a frozen adapter (`harness.model.frozen_lora.add_frozen_lora`): the function and its gradients are the same, and the
base model is unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness import Component, seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "lora": Component(
        summary="Trains low-rank adapters and freezes the weights (LoRA, arXiv:2106.09685, and its variants).",
        factory="harness_mitigations.lora:Lora",
        options={
            **adapter_common.LORA_OPTIONS,
            "target": {**adapter_common.TARGET_OPTION, "minItems": 0},
            "parameters": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "uniqueItems": True,
                "default": [],
                "description": "Names of stacked weights of experts that get an adapter too, from their end, "
                'e.g. ["experts.gate_up_proj", "experts.down_proj"]; "target" may then be [].',
            },
            "rslora": {
                "type": "boolean",
                "default": False,
                "description": "Scale by alpha / sqrt(rank), which suits high ranks (rsLoRA, arXiv:2312.03732).",
            },
            "dora": {
                "type": "boolean",
                "default": False,
                "description": "Learn magnitude and direction of each output separately (DoRA, arXiv:2402.09353).",
            },
            "start": {
                "enum": ["zero", "pissa", "olora", "corda"],
                "default": "zero",
                "description": "Initialization of the adapter: no change, or a part of the weight, which is then "
                "trained.",
            },
            "source": {
                "type": ["string", "null"],
                "format": "source",
                "default": None,
                "description": "For corda: the source whose rows keep their outputs, usually general conversations.",
            },
            "samples": {
                "type": "integer",
                "minimum": 1,
                "default": 256,
                "description": "For corda: rows that the inputs' covariance is measured on, chosen by the seed.",
            },
            "loraplus_ratio": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 1,
                "description": "Learning rate of B as a factor of that of A (LoRA+, arXiv:2402.12354). Usual: 1 to 16.",
            },
        },
        typical_ranges={"train.learning_rate": (5e-5, 1e-3), "train.epochs": (1, 5)},
    ),
}

LoraInit = Literal["zero", "pissa", "olora", "corda"]


def lora_scaling(rank: int, alpha: float, rslora: bool) -> float:
    """Return s: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732)."""
    return alpha / rank**0.5 if rslora else alpha / rank


@dataclass(eq=False)
class Lora(Mitigation):
    """Add an adapter before the first stage; every stage trains the same one.

    Attributes:
        rank: rank of the change.
        alpha: see `lora_scaling`; None: twice the rank.
        dropout: fraction of an adapter's inputs set to zero in training.
        target: "all-linear", every linear layer but the output head, or the names of modules.
        rslora: see `lora_scaling`.
        dora: learn each output's magnitude separately from its direction (arXiv:2402.09353).
        start: the initialization of A and B.
        source: for `corda`, the source whose rows keep their outputs.
        samples: for `corda`, maximum number of its rows.
        loraplus_ratio: learning rate of B as a factor of that of A (LoRA+, arXiv:2402.12354).
        parameters: names of stacked weights of experts that get an adapter too.
    """

    works_on_shards = True
    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    rank: int
    alpha: float | None
    dropout: float
    target: str | Sequence[str]
    rslora: bool
    dora: bool
    start: LoraInit
    source: str | None
    samples: int
    loraplus_ratio: float
    parameters: Sequence[str]

    def __post_init__(self) -> None:
        self.initialized = self.start == "zero"
        self._target_modules = adapter_common.to_target_modules("lora", self.target)

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject a second adapter, and options that contradict each other."""
        adapter_common.require_single_adapter("lora", others)
        if self.dora and self.start != "zero":
            raise HarnessError(
                "mitigations.lora.start",
                f"'{self.start}' removes a part of the weight, but DoRA measures the magnitude of the complete weight",
                "set dora to false, or start to 'zero'",
            )
        if self.start == "corda" and self.source is None:
            raise HarnessError(
                "mitigations.lora.source",
                "'corda' preserves the outputs for the rows of a source, but no source is given",
                "name a source of what is to be preserved, e.g. general conversations",
            )
        if self.parameters and (self.dropout or self.dora):
            what = "an adapter on the stacked weights of experts has neither dropout nor DoRA"
            raise HarnessError("mitigations.lora.parameters", what, "set dropout to 0 and dora to false")
        if not self.parameters and not self.target:
            raise HarnessError("mitigations.lora.target", "no layer gets an adapter", "set it to 'all-linear'")

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Add the adapter; the model still computes the same.

        Raises:
            HarnessError: the model has an adapter, or `target` matches no module, or one that `start` does not support.
        """
        from peft import LoraConfig

        from harness_mitigations.linear_layers import require_linear_adapters

        if self.start != "zero":
            adapter_common.refuse_added_rows("mitigations.lora.start", model)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self._alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self._target_modules,
            target_parameters=self._require_experts(model),
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        peft_model = adapter_common.add_adapter("lora", model, config, seed=seed)
        if self.start != "zero":
            require_linear_adapters("mitigations.lora.start", peft_model)
        return peft_model

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Before the first stage, initialize A and B from the weights; the model still computes the same.

        Raises:
            HarnessError: the rank is larger than that of a weight, or `source` has no row.
        """
        if self.initialized:
            return
        import torch

        from harness.model import frozen_lora

        layers = frozen_lora.lora_layers(model)
        for name, layer in layers.items():
            if self.rank > min(layer.in_features, layer.out_features):
                what = f"rank {self.rank} is higher than that of {name}, {layer.out_features} x {layer.in_features}"
                raise HarnessError("mitigations.lora.rank", what, "lower it, or set start to 'zero'")
        scaling = lora_scaling(self.rank, self._alpha, self.rslora)
        with torch.no_grad():
            factors = self._initial_factors(model, layers, self._sample_rows(rows, seed), scaling)
            frozen_lora.add_frozen_lora(model, {name: (a, -scaling * b) for name, (a, b) in factors.items()})
            for name, (a, b) in factors.items():
                layers[name].lora_A["default"].weight.copy_(a)
                layers[name].lora_B["default"].weight.copy_(b)
        self.initialized = True

    def param_groups(self, model: PreTrainedModel) -> Sequence[Mapping[str, Any]]:
        """Return the higher learning rate of B for LoRA+."""
        if self.loraplus_ratio == 1:
            return ()
        of_b = [weight for name, weight in model.named_parameters() if "lora_B." in name and weight.requires_grad]
        return ({"params": of_b, "lr_scale": self.loraplus_ratio},)

    def state_dict(self) -> dict[str, Any]:
        """Return whether A and B are initialized; the model stores the adapters themselves."""
        return {"started": int(self.initialized)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.initialized = bool(state["started"])

    def _require_experts(self, model: PreTrainedModel) -> list[str] | None:
        """Return peft's `target_parameters`; None without `parameters`.

        Raises:
            HarnessError: a name is not that of stacked weights of experts.
        """
        if not self.parameters:
            return None
        from harness.model.quantization import expert_names

        names = expert_names(model)
        for parameter in self.parameters:
            if not any(f".{name}".endswith(f".{parameter}") for name in names):
                endings = sorted({".".join(name.split(".")[-2:]) for name in names})
                what = f"no stacked weights of experts have a name that ends with {parameter!r}"
                hint = f"name some of {json.dumps(endings)}" if endings else "set it to []: the model has none"
                raise HarnessError("mitigations.lora.parameters", what, hint)
        return list(self.parameters)

    @property
    def _alpha(self) -> float:
        return 2 * self.rank if self.alpha is None else self.alpha

    def _initial_factors(
        self,
        model: PreTrainedModel,
        layers: Mapping[str, Any],
        rows: Sequence[TokenizedExample],
        scaling: float,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return A and B of each layer.

        Args:
            model: the model with its adapter.
            layers: its adapted layers.
            rows: for `corda`, the rows that keep their outputs.
            scaling: s.
        """
        from harness.model import quantization
        from harness_mitigations import lora_init

        base_layers = {name: layer.get_base_layer() for name, layer in layers.items()}
        weights = {  # GPT-2's Conv1D stores the transposed weight
            name: layer.weight.T if layers[name].fan_in_fan_out else quantization.dequantized_weight(layer)
            for name, layer in base_layers.items()
        }
        if self.start == "pissa":
            return {name: lora_init.pissa_factors(weight, self.rank, scaling) for name, weight in weights.items()}
        if self.start == "olora":
            return {name: lora_init.olora_factors(weight, self.rank) for name, weight in weights.items()}
        covariances = lora_init.input_covariances(model, base_layers, rows)
        return {
            name: lora_init.corda_factors(weight, covariances[name], self.rank, scaling)
            for name, weight in weights.items()
        }

    def _sample_rows(
        self, rows_by_source: Mapping[str, Sequence[TokenizedExample]], seed: int
    ) -> list[TokenizedExample]:
        """Return the rows for `corda`; none for another initialization."""
        if self.start != "corda":
            return []
        rows = rows_by_source.get(self.source or "", ())
        if not rows:
            raise HarnessError(
                "mitigations.lora.source", f"'{self.source}' has no row", "name a source that has rows to train on"
            )
        generator = seeding.create_generator(seed, "lora", "corda")
        return [rows[index] for index in generator.sample(range(len(rows)), min(self.samples, len(rows)))]
