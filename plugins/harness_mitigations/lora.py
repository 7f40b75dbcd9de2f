"""LoRA: only a low-rank change of the weights can be learned (Hu et al., 2021, arXiv:2106.09685), and its variants.

A weight W of shape (d, k) becomes W + s B A, with A of shape (rank, k) and B of shape (d, rank). With B zero at the
start, training begins at the base model exactly, and the base weights never move, so the base model is there for the
asking (`harness.model.save.reference`). How much is forgotten still grows with learning rate and steps.

PiSSA, OLoRA and CorDA start A and B from the weight itself (`starts`) and take s B0 A0 out of W. Here it is not taken
out of W, where it would change the base model and be rounded to its format, but kept as a frozen change beside the
adapter (`harness.model.frozen_lora.keep`): the function and its gradients are the same, and the base model stays what it
was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness import seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Row, Stage
from harness_mitigations import adapter_common

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Start = Literal["zero", "pissa", "olora", "corda"]


def scale(rank: int, alpha: float, rslora: bool) -> float:
    """s: alpha / rank, or alpha / sqrt(rank) where the rank is to be stable (rsLoRA, arXiv:2312.03732)."""
    return alpha / rank**0.5 if rslora else alpha / rank


class Lora(Mitigation):
    """Put an adapter on the model before the first stage; every stage trains the same one.

    rank: of the change. alpha: see `scale`; None: twice the rank. dropout: share of an adapter's inputs set to zero in
    training. target: "all-linear", every linear layer but the head, or the names of modules. rslora: see `scale`.
    dora: learn each output's magnitude apart from its direction (arXiv:2402.09353). start: what A and B start from.
    source, samples: rows whose inputs `corda` keeps away from, and how many of them.
    """

    order: ClassVar[int] = adapter_common.ORDER
    adapts: ClassVar[bool] = True

    def __init__(
        self,
        rank: int,
        alpha: float | None,
        dropout: float,
        target: str | Sequence[str],
        rslora: bool,
        dora: bool,
        start: Start,
        source: str | None,
        samples: int,
    ) -> None:
        self.rank, self.dropout, self.rslora, self.dora = rank, dropout, rslora, dora
        self.alpha = 2 * rank if alpha is None else alpha
        self.target = adapter_common.targets(target)
        self.start, self.source, self.samples = start, source, samples
        self.started = start == "zero"

    def check(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse a second adapter, and options that do not go together."""
        adapter_common.alone("lora", others)
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

    def model(self, model: PreTrainedModel) -> PreTrainedModel:
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
        return adapter_common.adapt("lora", model, config)

    def begin_stage(self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[Row]]) -> None:
        """Before the first stage, start A and B from the weights; the model computes the same afterwards."""
        if self.started:
            return
        import torch

        from harness.model import frozen_lora

        layers = frozen_lora.adapted_layers(model)
        for name, layer in layers.items():
            if self.rank > min(layer.in_features, layer.out_features):
                what = f"rank {self.rank} is more than {name} of {layer.out_features} x {layer.in_features} has"
                raise HarnessError("mitigations.lora.rank", what, "lower it, or set start to 'zero'")
        s = scale(self.rank, self.alpha, self.rslora)
        with torch.no_grad():
            pairs = self._factors(model, layers, rows, s)
            frozen_lora.keep(model, {name: (a, -s * b) for name, (a, b) in pairs.items()})
            for name, (a, b) in pairs.items():
                layers[name].lora_A["default"].weight.copy_(a)
                layers[name].lora_B["default"].weight.copy_(b)
        self.started = True

    def _factors(
        self, model: PreTrainedModel, layers: Mapping[str, Any], rows: Mapping[str, Sequence[Row]], s: float
    ) -> dict[str, tuple[Tensor, Tensor]]:
        from harness_mitigations import lora_init

        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        if self.start == "pissa":
            return {name: lora_init.principal(weight, self.rank, s) for name, weight in weights.items()}
        if self.start == "olora":
            return {name: lora_init.orthonormal(weight, self.rank) for name, weight in weights.items()}
        given = rows.get(self.source or "", ())
        if not given:
            raise HarnessError(
                "mitigations.lora.source", f"'{self.source}' has no row", "name a source that has rows to train on"
            )
        chosen = self._chosen(given)
        found = lora_init.covariances(model, {name: layer.get_base_layer() for name, layer in layers.items()}, chosen)
        return {name: lora_init.least_used(weight, found[name], self.rank, s) for name, weight in weights.items()}

    def _chosen(self, rows: Sequence[Row]) -> list[Row]:
        import torch

        draw = seeding.generator(torch.initial_seed(), "lora", "corda")
        return [rows[index] for index in draw.sample(range(len(rows)), min(self.samples, len(rows)))]

    def state_dict(self) -> dict[str, Any]:
        """Whether A and B have been started; the adapter itself, and what is kept beside it, are the model's."""
        return {"started": int(self.started)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.started = bool(state["started"])
