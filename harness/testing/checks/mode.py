"""The contract of modes."""

from __future__ import annotations

from harness.spec_keys.training import TRAIN_COMPONENTS, TRAIN_KEYS
from harness.testing.checks.declaration import check_light_creation
from harness.testing.component_under_test import ComponentUnderTest, require
from harness.types import Example, Message, SourceRows


def check_stages(subject: ComponentUnderTest) -> None:
    """The stages have unique names, sources and known settings."""
    stages = subject.create().stages()
    require(len({stage.name for stage in stages}) == len(stages), "two stages have the same name")
    for stage in stages:
        require(stage.sources, f"the stage {stage.name!r} has no sources")
        unknown = sorted(set(stage.train) - {*TRAIN_KEYS, *TRAIN_COMPONENTS})
        require(not unknown, f"the stage {stage.name!r} has the settings {unknown}, which `train` does not have")


def check_same_stages(subject: ComponentUnderTest) -> None:
    """Two instances with the same options return the same stages."""
    require(subject.create().stages() == subject.create().stages(), "the stages of two instances differ")


def check_row_choice(subject: ComponentUnderTest) -> None:
    """The rows that it selects, and their order, depend on the rows alone."""
    examples = [
        Example(f"{index:016x}", (Message("user", "Q" * index), Message("assistant", "A")), f"rows.jsonl:{index}",
                data=subject.example.data)
        for index in range(1, 7)
    ]  # fmt: skip
    rows = SourceRows("given", [10 + index for index in range(6)], [3] * 6, examples)
    choices = []
    for _ in range(2):
        mode = subject.create()
        stage = mode.stages()[0]
        selected, keys = mode.select(stage, rows), mode.order(stage, rows)
        choices.append((None if selected is None else list(selected), None if keys is None else list(keys)))
    require(choices[0] == choices[1], "two instances select or order the same rows differently")
    require(choices[0][0] is None or any(choices[0][0]), "it selects none of 6 rows")


CHECKS = (check_light_creation, check_stages, check_same_stages, check_row_choice)
