"""Modes return the stages that they describe."""

from __future__ import annotations

import pytest
from harness_modes import harness_modes
from harness_modes.continual import ContinualMode
from harness_modes.domain import DomainMode
from harness_modes.general import GeneralMode
from harness_modes.mixed import MixedMode

from harness import Stage, StageSource


def test_general_is_one_stage_on_all_general_sources():
    assert GeneralMode(["a", "b"]).stages() == (
        Stage("general", (StageSource("a", "general"), StageSource("b", "general"))),
    )


def test_domain_is_one_stage_on_all_domain_sources():
    assert DomainMode(["a", "b"]).stages() == (
        Stage("domain", (StageSource("a", "domain"), StageSource("b", "domain"))),
    )


def test_mixed_is_one_stage_on_all_sources_without_shares():
    (stage,) = MixedMode(domain=["a", "b"], general=["c"]).stages()
    assert stage.name == "mixed"
    assert stage.sources == (StageSource("a", "domain"), StageSource("b", "domain"), StageSource("c", "general"))
    assert stage.shares == ()


def test_continual_keeps_the_order_and_settings_of_its_stages():
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
def test_stages_are_the_same_at_each_call(mode):
    assert mode.stages() == mode.stages()


def test_a_mode_copies_its_list_of_sources():
    sources = ["a"]
    modes = [GeneralMode(sources), DomainMode(sources), MixedMode(sources, sources)]
    before = [mode.stages() for mode in modes]
    sources.append("b")
    assert [mode.stages() for mode in modes] == before


def test_the_modes_are_declared():
    assert set(harness_modes()) == {"general", "domain", "mixed", "continual", "curriculum"}
    assert getattr(harness_modes, "harness_impl", None) is not None
