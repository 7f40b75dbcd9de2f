"""Mitigation `mixing`: a fixed share of general conversations in every stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from harness import (
    Component,
    ComponentExample,
    Example,
    HarnessError,
    InvalidRecord,
    Mitigation,
    PromptRows,
    Share,
    Stage,
    StageSource,
)
from harness.types import ShareUnit
from harness_mitigations.response_writer import PROMPTS_OPTION, WRITING_OPTION, Writer, build_writer

UNIT_OPTION: dict[str, Any] = {
    "enum": ["loss_tokens", "tokens", "rows"],
    "default": "loss_tokens",
    "description": "The unit of the share, counted after truncation.",
}

COMPONENTS: dict[str, Component] = {
    "mixing": Component(
        summary="Mixes a fixed share of general conversations into every stage.",
        factory="harness_mitigations.mixing:Mixing",
        options={
            "share": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.1,
                "description": "Share of the final mixture, in `unit`; 0: no general row. Usual: 0.05 to 0.1.",
            },
            "unit": UNIT_OPTION,
            "source": {
                "type": ["string", "array", "null"],
                "format": "source",
                "items": {"type": "string", "format": "source"},
                "minItems": 1,
                "uniqueItems": True,
                "default": None,
                "description": "The general source, or several, for stages that have none of their own.",
            },
            "weights": {
                "type": ["object", "null"],
                "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
                "minProperties": 1,
                "default": None,
                "description": "General source -> its weight in the share, in any scale; null: equal.",
            },
            "temperature": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "default": None,
                "description": "Splits the share as size ** (1 / temperature) of each source. Usual: 1 to 5. "
                "1: in proportion to the sizes; null: equally.",
            },
            "upsample": {
                "type": "boolean",
                "default": False,
                "description": "Repeat general rows within an epoch where there are too few for the share.",
            },
            "resample": {
                "type": "boolean",
                "default": False,
                "description": "Draw other general rows for every epoch, unseen ones first.",
            },
            "answers": {
                "enum": ["data", "model"],
                "default": "data",
                "description": "data: train the general rows as they are. model: the base model answers their prompts "
                "before training, and its answers are trained.",
            },
            "prompts": PROMPTS_OPTION,
            "writing": WRITING_OPTION,
        },
        example=ComponentExample({"answers": "model"}),
    ),
}

SPEC_KEY = "mitigations.mixing"


def add_general_share(stage: Stage, share: Share, weights: Mapping[str, float] | None = None) -> Stage:
    """Add a share of the stage's general sources to the shares that it already has.

    Args:
        stage: a stage.
        share: the share of the general sources together, an amount in [0, 1); at 0 no general row is trained on.
            `share.sources` are added to a stage that has no general source; otherwise the stage's own are used.
        weights: weight of each general source within the share; None: see `harness.Share`.

    Raises:
        HarnessError: the stage has no general source and `share` names none, the stage has general sources only, or a
            general source has no weight.
    """
    general = tuple(part.source for part in stage.sources if part.role == "general")
    if len(general) == len(stage.sources):
        what = f"the stage {stage.name!r} trains on general conversations only, so there is nothing to mix them into"
        raise HarnessError(SPEC_KEY, what, "remove mixing, or use the mode 'mixed'")
    parts = stage.sources
    if not general:
        if not share.sources:
            what = f"the stage {stage.name!r} has no general source"
            raise HarnessError(SPEC_KEY, what, "name one in mitigations.mixing.source, or use the mode 'mixed'")
        general = share.sources
        parts += tuple(StageSource(source, "general") for source in general)
    unweighted = [source for source in general if weights is not None and source not in weights]
    if unweighted:
        what = f"the stage {stage.name!r} mixes in {', '.join(map(repr, unweighted))}, which has no weight"
        raise HarnessError(f"{SPEC_KEY}.weights", what, "give each general source one, or remove weights")
    split = None if weights is None else tuple(weights[source] for source in general)
    return replace(stage, sources=parts, shares=(*stage.shares, replace(share, sources=general, weights=split)))


class Mixing(Mitigation):
    """Set the share of general conversations in every stage. Applied last, so that the share is exact.

    Args:
        share: amount of the share, in [0, 1).
        unit: unit of the share.
        source: general sources for stages that have none.
        weights: see `add_general_share`.
        temperature: see `harness.Share`.
        upsample: see `harness.Share`.
        resample: see `harness.Share`.
        answers: `data`, or `model`: the base model answers the prompts of the general rows.
        prompts: `data`, or `model`: the base model writes prompts instead of the general rows, and answers them.
        writing: how the model writes, see `ResponseWriter`.
    """

    works_on_shards = True
    priority: ClassVar[int] = 100

    def __init__(  # noqa: PLR0913 (one argument for each option)
        self,
        share: float,
        unit: ShareUnit,
        source: str | Sequence[str] | None,
        weights: Mapping[str, float] | None,
        temperature: float | None,
        upsample: bool,
        resample: bool,
        answers: Writer,
        prompts: Writer,
        writing: Mapping[str, Any],
    ) -> None:
        if weights is not None and temperature is not None:
            raise HarnessError(SPEC_KEY, "both weights and temperature split the share", "remove one of the two")
        sources = (source,) if isinstance(source, str) else tuple(source or ())
        self.share = Share(sources, share, unit, None, temperature, upsample, resample)
        self.weights = weights
        self.writer = build_writer("mixing", answers, prompts, writing)
        self.writes_prompts = prompts == "model"

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages with the share of their general sources added."""
        mixed = tuple(add_general_share(stage, self.share, self.weights) for stage in stages)
        general = {part.source for stage in mixed for part in stage.sources if part.role == "general"}
        for source in self.weights or {}:
            if source not in general:
                what = f"{source!r} has a weight, but no stage mixes it in"
                hint = f"the general sources are: {', '.join(sorted(general))}"
                raise HarnessError(f"{SPEC_KEY}.weights", what, hint)
        return mixed if self.writer is None else tuple(map(self._with_written_rows, mixed))

    def _with_written_rows(self, stage: Stage) -> Stage:
        assert self.writer is not None
        limit = self.writer.prompts
        sources = (
            replace(
                part, written_by="mixing", limit=limit if part.limit is None else min(part.limit, limit or part.limit)
            )
            if part.role == "general"
            else part
            for part in stage.sources
        )
        return replace(stage, sources=tuple(sources))

    def generation_settings(self) -> Mapping[str, Any] | None:
        """Return how the model writes."""
        return None if self.writer is None else self.writer.settings()

    def generate_rows(
        self, stage: Stage, model: Any, prompts: PromptRows, *, seed: int
    ) -> Iterator[Example | InvalidRecord]:
        """Yield the general rows with the answers of the base model, or rows that it wrote alone."""
        assert self.writer is not None
        return self.writer.write_rows(model, prompts, seed=seed)
