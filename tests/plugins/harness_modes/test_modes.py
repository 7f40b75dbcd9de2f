"""Each mode lays its sources out as the stages that its name says."""

from __future__ import annotations

import pytest
from harness_modes import harness_modes
from harness_modes.modes import ContinualMode, DomainMode, GeneralMode, MixedMode

from harness import Stage, StageSource


def test_general_is_one_stage_on_general_sources_whole():
    assert GeneralMode(["a", "b"]).stages() == (
        Stage("general", (StageSource("a", "general"), StageSource("b", "general"))),
    )


def test_domain_is_one_stage_on_domain_sources_whole():
    assert DomainMode(["a", "b"]).stages() == (
        Stage("domain", (StageSource("a", "domain"), StageSource("b", "domain"))),
    )


def test_mixed_is_one_stage_on_both_sides_whole():
    (stage,) = MixedMode(domain=["a", "b"], general=["c"]).stages()
    assert stage.name == "mixed"
    assert stage.sources == (StageSource("a", "domain"), StageSource("b", "domain"), StageSource("c", "general"))
    assert stage.shares == ()


def test_continual_keeps_the_order_of_its_stages_and_their_own_settings():
    stages = ContinualMode(
        [
            {"name": "second-language", "general": ["c"], "domain": ["a"], "train": {"epochs": 2}},
            {"name": "first", "general": ["c"]},
        ]
    ).stages()
    assert [stage.name for stage in stages] == ["second-language", "first"]
    assert stages[0].sources == (StageSource("a", "domain"), StageSource("c", "general"))
    assert stages[1].sources == (StageSource("c", "general"),)
    assert [stage.train for stage in stages] == [{"epochs": 2}, {}]


@pytest.mark.parametrize(
    "mode",
    [GeneralMode(["a"]), DomainMode(["a"]), MixedMode(["a"], ["b"]), ContinualMode([{"name": "one", "domain": ["a"]}])],
)
def test_a_mode_gives_the_same_stages_each_time(mode):
    assert mode.stages() == mode.stages()


def test_a_mode_does_not_change_with_the_list_that_it_was_given():
    sources = ["a"]
    modes = [GeneralMode(sources), DomainMode(sources), MixedMode(sources, sources)]
    before = [mode.stages() for mode in modes]
    sources.append("b")
    assert [mode.stages() for mode in modes] == before


def test_the_four_modes_are_declared():
    assert set(harness_modes()) == {"general", "domain", "mixed", "continual"}
    assert getattr(harness_modes, "harness_impl", None) is not None
