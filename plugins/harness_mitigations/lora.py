"""LoRA: only a low-rank change of the weights can be learned (Hu et al., 2021, arXiv:2106.09685), and its variants.

A weight W of shape (d, k) becomes W + s B A, with A of shape (rank, k) and B of shape (d, rank). With B zero at the
start, training begins at the base model exactly, and the base weights never move, so the base model is there for the
asking (`harness.model.save.adapter_disabled`). How much is forgotten still grows with learning rate and steps.

PiSSA, OLoRA and CorDA start A and B from the weight itself (`lora_init`) and take s B0 A0 out of W. Here it is not
taken out of W, where it would change the base model and be rounded to its format, but kept as a frozen change beside
the adapter (`harness.model.frozen_lora.add_frozen_lora`): the function and its gradients are the same, and the base
model stays what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness import seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LoraInit = Literal["zero", "pissa", "olora", "corda"]


def lora_scaling(rank: int, alpha: float, rslora: bool) -> float:
    """s: alpha / rank, or alpha / sqrt(rank) where the rank is to be stable (rsLoRA, arXiv:2312.03732)."""
    return alpha / rank**0.5 if rslora else alpha / rank


class Lora(Mitigation):
    """Put an adapter on the model before the first stage; every stage trains the same one.

    rank: of the change. alpha: see `lora_scaling`; None: twice the rank. dropout: share of an adapter's inputs set to
    zero in training. target: "all-linear", every linear layer but the head, or the names of modules. rslora: see
    `lora_scaling`. dora: learn each output's magnitude apart from its direction (arXiv:2402.09353). start: what A and B
    start from. source, samples: rows whose inputs `corda` keeps away from, and how many of them.
    """

    priority: ClassVar[int] = adapter_common.ADAPTER_PRIORITY
    adds_adapter: ClassVar[bool] = True

    def __init__(
        self,
        rank: int,
        alpha: float | None,
        dropout: float,
        target: str | Sequence[str],
        rslora: bool,
        dora: bool,
        start: LoraInit,
        source: str | None,
        samples: int,
    ) -> None:
        self.rank, self.dropout, self.rslora, self.dora = rank, dropout, rslora, dora
        self.alpha = 2 * rank if alpha is None else alpha
        self.target = adapter_common.to_target_modules(target)
        self.start, self.source, self.samples = start, source, samples
        self.initialized = start == "zero"

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a second adapter, and options that do not go together."""
        adapter_common.require_single_adapter("lora", others)
        if self.dora and self.start != "zero":
            raise HarnessError(
                "mitigations.lora.start",
                f"'{self.start}' takes a part out of the weight, whose magnitude DoRA measures whole",
                "set dora to false, or start to 'zero'",
            )
        if self.start == "corda" and self.source is None:
            raise HarnessError(
                "mitigations.lora.source",
                "'corda' keeps what some rows need, and no source says which",
                "name a source of what is to be kept, e.g. general conversations",
            )

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model within its adapter, still computing what it computed.

        Raises HarnessError when it has an adapter already, or no module of that name.
        """
        from peft import LoraConfig

        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self.target,
            use_rslora=self.rslora,
            use_dora=self.dora,
        )
        return adapter_common.add_adapter("lora", model, config)

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Before the first stage, start A and B from the weights; the model computes the same afterwards."""
        if self.initialized:
            return
        import torch

        from harness.model import frozen_lora

        layers = frozen_lora.lora_layers(model)
        for name, layer in layers.items():
            if self.rank > min(layer.in_features, layer.out_features):
                what = f"rank {self.rank} is more than {name} of {layer.out_features} x {layer.in_features} has"
                raise HarnessError("mitigations.lora.rank", what, "lower it, or set start to 'zero'")
        s = lora_scaling(self.rank, self.alpha, self.rslora)
        with torch.no_grad():
            pairs = self._initial_factors(model, layers, rows, s)
            frozen_lora.add_frozen_lora(model, {name: (a, -s * b) for name, (a, b) in pairs.items()})
            for name, (a, b) in pairs.items():
                layers[name].lora_A["default"].weight.copy_(a)
                layers[name].lora_B["default"].weight.copy_(b)
        self.initialized = True

    def _initial_factors(
        self,
        model: PreTrainedModel,
        layers: Mapping[str, Any],
        rows: Mapping[str, Sequence[TokenizedExample]],
        scaling: float,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        from harness_mitigations import lora_init

        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        if self.start == "pissa":
            return {name: lora_init.pissa_factors(weight, self.rank, scaling) for name, weight in weights.items()}
        if self.start == "olora":
            return {name: lora_init.olora_factors(weight, self.rank) for name, weight in weights.items()}
        given = rows.get(self.source or "", ())
        if not given:
            raise HarnessError(
                "mitigations.lora.source", f"'{self.source}' has no row", "name a source that has rows to train on"
            )
        chosen = self._sample_rows(given)
        found = lora_init.input_covariances(
            model, {name: layer.get_base_layer() for name, layer in layers.items()}, chosen
        )
        return {
            name: lora_init.corda_factors(weight, found[name], self.rank, scaling) for name, weight in weights.items()
        }

    def _sample_rows(self, rows: Sequence[TokenizedExample]) -> list[TokenizedExample]:
        import torch

        draw = seeding.create_generator(torch.initial_seed(), "lora", "corda")
        return [rows[index] for index in draw.sample(range(len(rows)), min(self.samples, len(rows)))]

    def state_dict(self) -> dict[str, Any]:
        """Whether A and B have been started; the adapter itself, and what is kept beside it, are the model's."""
        return {"started": int(self.initialized)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.initialized = bool(state["started"])
