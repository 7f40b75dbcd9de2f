"""Mitigation `replay`: later stages also train on some rows of the earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from harness import Component, ComponentExample, Example, InvalidRecord, PromptRows
from harness.interfaces.mitigation import Mitigation
from harness.types import Share, ShareUnit, Stage, StageSource
from harness_mitigations.mixing import UNIT_OPTION
from harness_mitigations.response_writer import WRITING_OPTION, ResponseWriter, keep_most_similar

COMPONENTS: dict[str, Component] = {
    "replay": Component(
        summary="Trains later stages on some rows of the earlier ones.",
        factory="harness_mitigations.replay:Replay",
        options={
            "share": {
                "type": "number",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.1,
                "description": "Share of all earlier stages together in a later stage's final mixture, in `unit`.",
            },
            "unit": UNIT_OPTION,
            "buffer": {
                "type": ["integer", "null"],
                "minimum": 1,
                "default": None,
                "description": "Maximum number of rows of each earlier source, chosen by the seed; null: all.",
            },
            "answers": {
                "enum": ["data", "model"],
                "default": "data",
                "description": "data: train the earlier rows as they are. model: just before a stage, the model as it "
                "is then answers their prompts, and its answers are trained.",
            },
            "writing": WRITING_OPTION,
            "keep": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": 1,
                "description": "With answers: model: the fraction of the answers of each source that is used, those "
                "whose words are most similar to the data's response.",
            },
        },
        example=ComponentExample({"answers": "model"}),
    ),
}


def add_replay(
    stages: tuple[Stage, ...], share: float, unit: ShareUnit, buffer: int | None, written_by: str | None = None
) -> tuple[Stage, ...]:
    """Add the domain sources of all previous stages to each stage.

    A source that a stage trains on itself is not replayed in it. General sources are not replayed: `mixing` adds those.
    The first stage is unchanged, and so is a stage without other earlier sources.

    Args:
        stages: the stages in order.
        share: share of the replayed sources together in a stage's final mixture, in (0, 1).
        unit: the unit of `share`.
        buffer: maximum number of rows of each source; None: all.
        written_by: the mitigation that lets the model answer their prompts; None: the rows of the data.
    """
    result: list[Stage] = []
    earlier_sources: list[str] = []
    for stage in stages:
        stage_sources = {part.source for part in stage.sources}
        replayed = tuple(source for source in dict.fromkeys(earlier_sources) if source not in stage_sources)
        earlier_sources += [part.source for part in stage.sources if part.role == "domain"]
        if replayed:
            parts = tuple(StageSource(source, "replay", limit=buffer, written_by=written_by) for source in replayed)
            shares = (*stage.shares, Share(replayed, share, unit))
            stage = replace(stage, sources=stage.sources + parts, shares=shares)
        result.append(stage)
    return tuple(result)


class Replay(Mitigation):
    """Add rows of all previous stages to every later one.

    Args:
        share: see `add_replay`.
        unit: see `add_replay`.
        buffer: see `add_replay`.
        answers: `data`, or `model`: the model with which a stage begins answers the prompts of the earlier rows.
        writing: how the model answers, see `ResponseWriter`.
        keep: fraction of the model's usable answers that is trained, see `keep_most_similar`.
    """

    works_on_shards = True
    priority: ClassVar[int] = 50
    """Before `mixing`, whose share is of the mixture with the replayed rows."""

    generates_with = "current"

    def __init__(
        self,
        share: float,
        unit: ShareUnit,
        buffer: int | None,
        answers: Literal["data", "model"],
        writing: Mapping[str, Any],
        keep: float,
    ) -> None:
        self.share, self.unit, self.buffer, self.keep = share, unit, buffer, keep
        self.writer = ResponseWriter(**writing) if answers == "model" else None

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages with the replayed sources added."""
        if self.writer is None:
            return add_replay(stages, self.share, self.unit, self.buffer)
        limits = [limit for limit in (self.buffer, self.writer.prompts) if limit is not None]
        return add_replay(stages, self.share, self.unit, min(limits, default=None), "replay")

    def generate_rows(
        self, stage: Stage, model: Any, prompts: PromptRows, *, seed: int
    ) -> Iterator[Example | InvalidRecord]:
        """Yield the rows of an earlier source with the answers of the model with which the stage begins."""
        assert self.writer is not None
        rows = list(self.writer.write_rows(model, prompts, seed=seed))
        return keep_most_similar(rows, prompts.examples, self.keep)
