"""Elastic weight consolidation: weights that matter to what is known are held where they were.

Adds lambda / 2 * sum of F (theta - theta0)^2 to what is minimised, F the diagonal of the Fisher information
(Kirkpatrick et al., 2017, arXiv:1612.00796); over stages the importances are summed with a decay and there is one
anchor (online EWC, arXiv:1805.06370). How the pull enters is in `weight_anchor`, what F is in `fisher`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness import seeding
from harness.errors import HarnessError, RunError
from harness.types import Stage, TokenizedExample
from harness_mitigations.weight_anchor import AnchoredWeights, Coupling, StorageDevice

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness_mitigations.adapted_weights import TrainableWeights


class Ewc(AnchoredWeights):
    """Protect what the model knew at the start of the run, and then what each stage taught it.

    source: whose rows the first Fisher is measured on, before the first stage. strength: lambda. coupling, place: see
    `AnchoredWeights`. labels, batch_size: see `fisher`. samples: rows that a Fisher is measured on at most, drawn
    without repetition. normalise: scale each measured Fisher to mean 1, so that `strength` means the same for any model
    and data, in units of L2-SP. clip: cut it at this quantile before; None: not. decay: what is kept of the earlier
    importances when a stage's own are added. dtype: that the importances are kept in. cache: whether the first Fisher
    is kept on disk for the next run.
    """

    def __init__(
        self,
        source: str,
        strength: float,
        coupling: Coupling,
        labels: Literal["sampled", "empirical", "exact"],
        samples: int,
        batch_size: int,
        normalise: bool,
        clip: float | None,
        decay: float,
        dtype: Literal["float32", "bfloat16"],
        place: StorageDevice,
        cache: bool,
    ) -> None:
        super().__init__("ewc", strength, coupling, place)
        self.source, self.fisher_labels, self.samples, self.batch_size = source, labels, samples, batch_size
        self.normalise, self.clip, self.decay, self.dtype, self.cache = normalise, clip, decay, dtype, cache
        self.importance = {}
        self.finished_rows: tuple[TokenizedExample, ...] = ()
        self.fisher_stats: dict[str, float] = {}

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]]
    ) -> None:
        """Anchor the weights as they are; measure what matters to `source`, or to the stage just finished."""
        self.fisher_stats = {}
        if self.strength == 0 or (self.importance and not self.finished_rows):
            return
        moves = self._trainable_weights(model)
        first = not self.importance
        if first:
            given = rows.get(self.source, ())
            if not given:
                raise HarnessError(
                    "mitigations.ewc.source",
                    f"'{self.source}' has no row to measure the Fisher on",
                    "name a source that has rows to train on",
                )
            self.finished_rows = self._sample_rows(stage, given)
        new = self._measure_importances(stage, model, moves, self.finished_rows, first=first)
        for name, importance in (self.importance or {}).items():
            added = new[name].float().add_(importance.to(new[name].device).float(), alpha=self.decay)
            new[name] = added.to(new[name].dtype)
        self.importance = {name: self._to_storage(importance) for name, importance in new.items()}
        self.finished_rows = ()
        self._set_anchor(moves)

    def stage_stats(self) -> Mapping[str, float]:
        """How the Fisher that was measured at this stage's beginning is spread; nothing when none was."""
        return self.fisher_stats

    def on_stage_end(self, stage: Stage, model: PreTrainedModel, rows: Sequence[TokenizedExample]) -> None:
        """Keep some of the stage's rows for the Fisher of the next one's beginning: after the last it would be for
        nothing."""
        if self.strength != 0:
            self.finished_rows = self._sample_rows(stage, rows)

    def state_dict(self) -> dict[str, Any]:
        """Importances, anchors and changes; between two stages also the rows that the next Fisher is measured on."""
        return {**super().state_dict(), "finished": _rows_to_tensors(self.finished_rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.finished_rows = _rows_from_tensors(state["finished"])

    def _sample_rows(self, stage: Stage, rows: Sequence[TokenizedExample]) -> tuple[TokenizedExample, ...]:
        import torch

        draw = seeding.create_generator(torch.initial_seed(), "ewc", "rows", stage.name)
        return tuple(rows[index] for index in draw.sample(range(len(rows)), min(self.samples, len(rows))))

    def _measure_importances(
        self,
        stage: Stage,
        model: PreTrainedModel,
        trainable: TrainableWeights,
        rows: Sequence[TokenizedExample],
        *,
        first: bool,
    ) -> dict[str, Tensor]:
        """The importances that a stage begins with, normalised, cut and in their format."""
        import torch

        from harness_mitigations import fisher as fisher_module
        from harness_mitigations import fisher_cache
        from harness_mitigations.fisher import compute_diagonal_fisher

        seed = seeding.derive_seed(torch.initial_seed(), "ewc", "labels", stage.name)
        how = {
            "labels": self.fisher_labels,
            "batch_size": self.batch_size,
            "normalise": self.normalise,
            "clip": self.clip,
            "dtype": self.dtype,
            "seed": seed,
        }
        # Training moves the weights away from the files that they came from: only the first is known by them.
        known_by = fisher_cache.fisher_cache_key(model, trainable, rows, how) if first and self.cache else None
        place = "cpu" if self.place == "cpu" else None
        if known_by is not None:
            kept = fisher_cache.load_fisher(known_by, torch.device(place or next(model.parameters()).device))
            if kept is not None:
                new, self.fisher_stats = kept
                return new
        generator = torch.Generator().manual_seed(seed)
        options = {"labels": self.fisher_labels, "batch_size": self.batch_size, "generator": generator, "device": place}
        found = compute_diagonal_fisher(model, trainable, rows, **options)  # type: ignore[arg-type]
        counts = fisher_module.importance_histogram(found.values())
        if not fisher_module.histogram_is_finite(counts):
            raise RunError(
                "mitigations.ewc",
                f"the Fisher of {len(rows)} rows is not finite",
                "set train.precision to 'float32', or look for damaged rows",
            )
        self.fisher_stats = fisher_module.importance_stats(counts)
        if self.clip is not None:
            torch._foreach_clamp_max_(list(found.values()), fisher_module.histogram_quantile(counts, self.clip))
        if self.normalise:
            mean = sum(float(f.sum(dtype=torch.float64)) for f in found.values()) / sum(
                f.numel() for f in found.values()
            )
            if mean > 0:
                torch._foreach_div_(list(found.values()), mean)
        stored = {name: importance.to(getattr(torch, self.dtype)) for name, importance in found.items()}
        if known_by is not None:
            fisher_cache.save_fisher(known_by, stored, self.fisher_stats)
        return stored


def _rows_to_tensors(rows: Sequence[TokenizedExample]) -> dict[str, Tensor]:
    """Rows as tensors: all tokens and labels one after the other, and where each row ends."""
    import torch

    ends = torch.tensor([len(row.input_ids) for row in rows], dtype=torch.int64).cumsum(0)
    ids = torch.tensor([token for row in rows for token in row.input_ids], dtype=torch.int64)
    labels = torch.tensor([label for row in rows for label in row.labels], dtype=torch.int64)
    return {"ids": ids, "labels": labels, "ends": ends}


def _rows_from_tensors(tensors: Mapping[str, Tensor]) -> tuple[TokenizedExample, ...]:
    ids, labels, ends = (tensors[name].tolist() for name in ("ids", "labels", "ends"))
    begins = [0, *ends][:-1]
    return tuple(
        TokenizedExample(f"finished-{number}", "finished", tuple(ids[begin:end]), tuple(labels[begin:end]))
        for number, (begin, end) in enumerate(zip(begins, ends, strict=True))
    )
