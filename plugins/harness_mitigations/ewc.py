"""Mitigation `ewc`, elastic weight consolidation: changes of important weights are penalized.

Adds lambda / 2 * sum of F (theta - theta0)^2 to the objective, F the diagonal of the Fisher information (Kirkpatrick et
al., 2017, arXiv:1612.00796). Over stages the importances are summed with a decay, and there is one anchor (online EWC,
arXiv:1805.06370). `weight_anchor` applies the penalty, `fisher` computes F.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness import Component, seeding
from harness.errors import HarnessError, RunError
from harness.types import Stage, TokenizedExample
from harness_mitigations.weight_anchor import COUPLING_OPTION, PLACE_OPTION, AnchoredWeights, Coupling, StorageDevice

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_mitigations.adapted_weights import TrainableWeights

COMPONENTS: dict[str, Component] = {
    "ewc": Component(
        summary="Penalizes changes of important weights (EWC with a diagonal Fisher, arXiv:1612.00796).",
        factory="harness_mitigations.ewc:Ewc",
        options={
            "source": {
                "type": "string",
                "format": "source",
                "description": "The source on whose rows the Fisher of the base model is measured: what is to be "
                "preserved.",
            },
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 1.0,
                "description": "Factor of the penalty; with a normalized Fisher in the same unit as that of L2-SP. The "
                "same value is stronger for a larger model and a smaller max_grad_norm: docs/mitigations/ewc.md.",
            },
            "coupling": COUPLING_OPTION,
            "labels": {
                "enum": ["sampled", "empirical", "exact"],
                "default": "sampled",
                "description": "Targets of the Fisher. sampled: drawn from the model (the true Fisher). empirical: "
                "those of the data. exact: all tokens of a small vocabulary, weighted by their probability.",
            },
            "samples": {
                "type": "integer",
                "minimum": 1,
                "default": 64,
                "description": "Number of rows that each Fisher is measured on, chosen by the seed.",
            },
            "batch_size": {
                "type": "integer",
                "minimum": 1,
                "default": 8,
                "description": "Rows in one pass of the Fisher with sampled labels; other labels take one row a pass.",
            },
            "normalise": {
                "type": "boolean",
                "default": True,
                "description": "Divide the Fisher by its mean, so that its scale does not depend on the data.",
            },
            "clip": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "default": None,
                "description": "Clip the Fisher at this quantile before it is normalized, e.g. 0.999. null: never.",
            },
            "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 1.0,
                "description": "Weight of the Fisher of earlier stages when a stage's own is added.",
            },
            "dtype": {
                "enum": ["float32", "bfloat16"],
                "default": "float32",
                "description": "Number format that the Fisher is stored in; it is measured in float32.",
            },
            "place": PLACE_OPTION,
            "cache": {
                "type": "boolean",
                "default": True,
                "description": "Cache the base model's Fisher on disk, so that the next run need not measure it.",
            },
        },
        required=("source",),
    ),
}


@dataclass(eq=False)
class Ewc(AnchoredWeights):
    """Protect what the model knew at the start of the run, and then what each stage taught it.

    Attributes:
        source: the source on whose rows the first Fisher is measured, before the first stage.
        strength: lambda.
        coupling: see `weight_anchor`.
        labels: see `fisher.compute_diagonal_fisher`.
        samples: maximum number of rows that a Fisher is measured on, drawn without replacement.
        batch_size: see `fisher.compute_diagonal_fisher`.
        normalise: whether to scale each measured Fisher to mean 1, so that `strength` has the unit of that of L2-SP.
        clip: quantile to clip a Fisher at before it is normalized; None: no clipping.
        decay: factor of the earlier importances when a stage's own are added, in [0, 1].
        dtype: number format that the importances are stored in.
        place: see `AnchoredWeights`.
        cache: whether the first Fisher is cached on disk for the next run.
    """

    source: str
    strength: float
    coupling: Coupling
    labels: Literal["sampled", "empirical", "exact"]
    samples: int
    batch_size: int
    normalise: bool
    clip: float | None
    decay: float
    dtype: Literal["float32", "bfloat16"]
    place: StorageDevice
    cache: bool

    def __post_init__(self) -> None:
        super().__init__("ewc", self.strength, self.coupling, self.place)
        self.importance = {}
        self.finished_rows: tuple[TokenizedExample, ...] = ()
        self.fisher_stats: dict[str, float] = {}
        self.stage_seed = 0

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the anchor, and of an importance for each weight that is trained or adapted."""
        from harness.model import frozen_lora

        if self.place == "cpu":
            return 0
        layers = frozen_lora.lora_layers(model).values() if hasattr(model, "peft_config") else ()
        adapted = sum(layer.in_features * layer.out_features for layer in layers)
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        bytes_of_importance = 2 if self.dtype == "bfloat16" else 4
        return super().held_bytes(model, itemsize=itemsize) + bytes_of_importance * (adapted or trained)

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Anchor the weights as they are, and measure the importances for `source` or for the finished stage.

        Raises:
            HarnessError: `source` has no row.
            RunError: the Fisher is not finite.
        """
        self.warn_of_clipping()
        self.stage_seed, self.fisher_stats = seed, {}
        if self.strength == 0 or (self.importance and not self.finished_rows):
            return
        trainable = self._trainable_weights(model)
        first = not self.importance
        if first:
            source_rows = rows.get(self.source, ())
            if not source_rows:
                raise HarnessError(
                    "mitigations.ewc.source",
                    f"'{self.source}' has no row to measure the Fisher on",
                    "name a source that has rows to train on",
                )
            self.finished_rows = self._sample_rows(stage, source_rows)
        importances = self._load_or_measure_importances(stage, model, trainable, first=first)
        for name, earlier in (self.importance or {}).items():
            total = importances[name].float().add_(earlier.to(importances[name].device).float(), alpha=self.decay)
            importances[name] = total.to(importances[name].dtype)
        self.importance = {name: self._to_storage(importance) for name, importance in importances.items()}
        self.finished_rows = ()
        self._set_anchor(trainable)

    def stage_stats(self) -> Mapping[str, float]:
        """Return the stats of the Fisher that was measured at the start of this stage; empty when none was."""
        return self.fisher_stats

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Keep some of the stage's rows.

        The Fisher is measured on them when the next stage starts: after the last stage it would not be used.
        """
        if self.strength != 0:
            self.finished_rows = self._sample_rows(stage, rows)

    def state_dict(self) -> dict[str, Any]:
        """Return importances and anchors; between two stages also the rows that the next Fisher is measured on."""
        return {**super().state_dict(), "finished": _rows_to_tensors(self.finished_rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        super().load_state_dict(state)
        self.finished_rows = _rows_from_tensors(state["finished"])

    def _sample_rows(self, stage: Stage, rows: Sequence[TokenizedExample]) -> tuple[TokenizedExample, ...]:
        generator = seeding.create_generator(self.stage_seed, "ewc", "rows", stage.name)
        return tuple(rows[index] for index in generator.sample(range(len(rows)), min(self.samples, len(rows))))

    def _load_or_measure_importances(
        self, stage: Stage, model: PreTrainedModel, trainable: TrainableWeights, *, first: bool
    ) -> dict[str, Tensor]:
        """Return the importances of `finished_rows`, clipped, normalized and in their dtype; sets `fisher_stats`.

        Args:
            stage: the stage that begins.
            model: the model at its start.
            trainable: its trainable weights.
            first: whether this is the first Fisher of the run, which may be cached.
        """
        import torch

        from harness_mitigations import fisher_cache

        seed = seeding.derive_seed(self.stage_seed, "ewc", "labels", stage.name)
        options = {
            "labels": self.labels,
            "batch_size": self.batch_size,
            "normalise": self.normalise,
            "clip": self.clip,
            "dtype": self.dtype,
            "seed": seed,
        }
        cache_key = None
        if first and self.cache:  # once trained, the weights are not those of the files that identify them
            cache_key = fisher_cache.fisher_cache_key(model, trainable, self.finished_rows, options)
        if cache_key is not None:
            device = torch.device("cpu") if self.place == "cpu" else next(model.parameters()).device
            entry = fisher_cache.load_fisher(cache_key, device)
            if entry is not None:
                importances, self.fisher_stats = entry
                return importances
        importances = self._measure_importances(model, trainable, seed)
        if cache_key is not None:
            fisher_cache.save_fisher(cache_key, importances, self.fisher_stats)
        return importances

    def _measure_importances(self, model: PreTrainedModel, trainable: TrainableWeights, seed: int) -> dict[str, Tensor]:
        import torch

        from harness_mitigations import fisher

        importances = fisher.compute_diagonal_fisher(
            model,
            trainable,
            self.finished_rows,
            labels=self.labels,
            batch_size=self.batch_size,
            generator=torch.Generator().manual_seed(seed),
            device="cpu" if self.place == "cpu" else None,
        )
        counts = fisher.importance_histogram(importances.values())
        if not fisher.histogram_is_finite(counts):
            raise RunError(
                "mitigations.ewc",
                f"the Fisher of {len(self.finished_rows)} rows is not finite",
                "set train.precision to 'float32', or check the rows",
            )
        self.fisher_stats = fisher.importance_stats(counts)
        tensors = list(importances.values())
        if self.clip is not None:
            torch._foreach_clamp_max_(tensors, fisher.histogram_quantile(counts, self.clip))
        if self.normalise:
            total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in tensors)
            mean = total / sum(tensor.numel() for tensor in tensors)
            if mean > 0:
                torch._foreach_div_(tensors, mean)
        return {name: importance.to(getattr(torch, self.dtype)) for name, importance in importances.items()}


def _rows_to_tensors(rows: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """Concatenate the tokens and labels of rows into tensors, with the end of each row."""
    import torch

    ends = torch.tensor([len(row.input_ids) for row in rows], dtype=torch.int64).cumsum(0)
    ids = torch.tensor([token for row in rows for token in row.input_ids], dtype=torch.int64)
    labels = torch.tensor([label for row in rows for label in row.labels], dtype=torch.int64)
    return {"ids": ids, "labels": labels, "ends": ends}


def _rows_from_tensors(tensors: Mapping[str, Tensor]) -> tuple[TokenizedExample, ...]:
    ids, labels, ends = (tensors[name].tolist() for name in ("ids", "labels", "ends"))
    starts = [0, *ends][:-1]
    return tuple(
        TokenizedExample(f"finished-{index}", "finished", tuple(ids[start:end]), tuple(labels[start:end]))
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    )
