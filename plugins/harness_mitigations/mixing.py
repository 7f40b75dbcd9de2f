"""Mixing general conversations into what is learned: the plainest way to forget less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from harness import HarnessError, Mitigation, Share, Stage, StageSource
from harness.types import ShareUnit

SPEC_KEY = "mitigations.mixing"


def add_general_share(
    stage: Stage,
    share: float,
    unit: ShareUnit = "loss_tokens",
    sources: Sequence[str] = (),
    weights: Mapping[str, float] | None = None,
    temperature: float | None = None,
    *,
    upsample: bool = False,
    resample: bool = False,
) -> Stage:
    """The stage with its general parts together at `share` of the final mixture, beside the shares it already has.

    share: in [0, 1), of the mixture's `unit`; at 0 no general row is trained on. sources: general sources for a stage
    that has none. weights, temperature, upsample, resample: see `harness.Share`; weights by source.
    Raises HarnessError when there is nothing general to mix in, or nothing else to mix it into.
    """
    general = [part.source for part in stage.sources if part.role == "general"]
    if len(general) == len(stage.sources):
        what = f"the stage {stage.name!r} trains on general conversations alone, so there is nothing to mix them into"
        raise HarnessError(SPEC_KEY, what, "leave mixing out, or use the mode 'mixed'")
    parts = stage.sources
    if not general:
        if not sources:
            what = f"the stage {stage.name!r} has no general source"
            raise HarnessError(SPEC_KEY, what, "name one in mitigations.mixing.source, or use the mode 'mixed'")
        general = list(sources)
        parts += tuple(StageSource(source, "general") for source in general)
    unweighted = [source for source in general if weights is not None and source not in weights]
    if unweighted:
        what = f"the stage {stage.name!r} mixes in {', '.join(map(repr, unweighted))}, which has no weight"
        raise HarnessError(f"{SPEC_KEY}.weights", what, "give each general source one, or leave weights out")
    split = None if weights is None else tuple(weights[source] for source in general)
    asked = Share(tuple(general), share, unit, split, temperature, upsample, resample)
    return replace(stage, sources=parts, shares=(*stage.shares, asked))


class Mixing(Mitigation):
    """States the share of general conversations in every stage. Applied last, so that the share is exact."""

    priority: ClassVar[int] = 100

    def __init__(
        self,
        share: float,
        unit: ShareUnit,
        source: str | Sequence[str] | None,
        weights: Mapping[str, float] | None,
        temperature: float | None,
        upsample: bool,
        resample: bool,
    ) -> None:
        if weights is not None and temperature is not None:
            raise HarnessError(SPEC_KEY, "the share is split by weights and by temperature", "give one of the two")
        self.share, self.unit, self.weights, self.temperature = share, unit, weights, temperature
        self.sources = (source,) if isinstance(source, str) else tuple(source or ())
        self.upsample, self.resample = upsample, resample

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        mixed = tuple(
            add_general_share(
                stage,
                self.share,
                self.unit,
                self.sources,
                self.weights,
                self.temperature,
                upsample=self.upsample,
                resample=self.resample,
            )
            for stage in stages
        )
        used = {part.source for stage in mixed for part in stage.sources if part.role == "general"}
        for source in self.weights or {}:
            if source not in used:
                what = f"{source!r} has a weight, and no stage mixes it in"
                raise HarnessError(f"{SPEC_KEY}.weights", what, f"the general sources are: {', '.join(sorted(used))}")
        return mixed
