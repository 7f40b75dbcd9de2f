"""Mixing sets the share of general conversations in every stage."""

from __future__ import annotations

import pytest
from harness_mitigations.mixing import Mixing, add_general_share
from hypothesis import given
from hypothesis import strategies as st

from harness import HarnessError, Share, Stage, StageSource
from harness.spec import shares

STAGE = Stage("mixed", (StageSource("desk", "domain"), StageSource("chat", "general")), {"epochs": 2})
TWO = Stage("two", (StageSource("desk", "domain"), StageSource("chat", "general"), StageSource("web", "general")))
DOMAIN = Stage("domain", (StageSource("desk", "domain"),))


def create_mixing(share=0.1, unit="rows", source=None, weights=None, temperature=None, upsample=False, resample=False):
    return Mixing(share, unit, source, weights, temperature, upsample, resample, "data", "data", {})


def test_general_sources_get_the_share_and_the_unit():
    mixed = add_general_share(STAGE, Share((), 0.1, "tokens"))
    assert mixed.sources == STAGE.sources
    assert mixed.shares == (Share(("chat",), 0.1, "tokens"),)


def test_a_share_of_zero_is_valid():
    mixed = add_general_share(STAGE, Share((), 0.0))
    assert mixed.shares == (Share(("chat",), 0.0),)
    assert list(shares.validate_shares(mixed)) == []


def test_name_and_settings_of_the_stage_do_not_change():
    mixed = add_general_share(STAGE, Share((), 0.1, "rows"))
    assert (mixed.name, mixed.train) == (STAGE.name, STAGE.train)


@given(st.integers(1, 6), st.floats(0.001, 0.999), st.sampled_from(["rows", "tokens", "loss_tokens"]))
def test_several_general_sources_have_the_share_together(number, share, unit):
    general = tuple(StageSource(f"chat-{index}", "general") for index in range(number))
    stage = Stage("mixed", (StageSource("desk", "domain"), *general))
    mixed = add_general_share(stage, Share((), share, unit))
    assert mixed.shares == (Share(tuple(part.source for part in general), share, unit),)
    assert list(shares.validate_shares(mixed)) == []


def test_shares_of_other_mitigations_are_kept():
    parts = (StageSource("desk", "domain"), StageSource("old", "replay", 50), StageSource("chat", "general"))
    replay_share = Share(("old",), 0.2, "rows")
    mixed = add_general_share(Stage("second", parts, {}, (replay_share,)), Share((), 0.1))
    assert mixed.sources == parts
    assert mixed.shares == (replay_share, Share(("chat",), 0.1))
    assert list(shares.validate_shares(mixed)) == []


def test_all_options_of_a_share_are_passed_on():
    (mixed,) = create_mixing(weights={"web": 1, "chat": 3}, upsample=True, resample=True).transform_stages((TWO,))
    assert mixed.shares == (Share(("chat", "web"), 0.1, "rows", (3, 1), None, True, True),)
    (mixed,) = create_mixing(temperature=2.0).transform_stages((TWO,))
    assert mixed.shares == (Share(("chat", "web"), 0.1, "rows", None, 2.0),)


@pytest.mark.parametrize("source", ["chat", ["chat", "web"]])
def test_a_stage_without_general_sources_gets_those_of_the_option(source):
    named = [source] if isinstance(source, str) else source
    (mixed,) = create_mixing(0.2, "loss_tokens", source).transform_stages((DOMAIN,))
    assert mixed.sources == (StageSource("desk", "domain"), *(StageSource(name, "general") for name in named))
    assert mixed.shares == (Share(tuple(named), 0.2),)


def test_a_stage_with_general_sources_does_not_get_those_of_the_option():
    assert [part.source for part in add_general_share(STAGE, Share(("other",), 0.2, "rows")).sources] == [
        "desk",
        "chat",
    ]


def test_a_stage_without_any_general_source_is_rejected():
    with pytest.raises(HarnessError) as error_info:
        add_general_share(DOMAIN, Share((), 0.1, "rows"))
    assert str(error_info.value) == (
        "mitigations.mixing: the stage 'domain' has no general source; "
        "name one in mitigations.mixing.source, or use the mode 'mixed'"
    )


@pytest.mark.parametrize("sources", [(), ("other",)])
def test_a_stage_with_general_sources_only_is_rejected(sources):
    with pytest.raises(HarnessError, match="nothing to mix them into; remove mixing"):
        add_general_share(Stage("general", (StageSource("chat", "general"),)), Share(sources, 0.1, "rows"))


def test_every_stage_uses_the_weights_of_its_own_sources():
    stages = create_mixing(weights={"chat": 1.0, "web": 2.0}).transform_stages((STAGE, TWO))
    assert [stage.name for stage in stages] == ["mixed", "two"]
    assert [stage.shares[0].weights for stage in stages] == [(1.0,), (1.0, 2.0)]


def test_a_general_source_without_a_weight_is_rejected():
    with pytest.raises(
        HarnessError, match=r"mitigations\.mixing\.weights: the stage 'two' mixes in 'web', which has no"
    ):
        create_mixing(weights={"chat": 1.0}).transform_stages((TWO,))


def test_a_weight_of_an_unused_source_is_rejected():
    with pytest.raises(
        HarnessError, match="'desk' has a weight, but no stage mixes it in; the general sources are: chat"
    ):
        create_mixing(weights={"chat": 1.0, "desk": 2.0}).transform_stages((STAGE,))


def test_weights_with_temperature_are_rejected():
    with pytest.raises(HarnessError, match="both weights and temperature split the share; remove one of the two"):
        create_mixing(weights={"chat": 1.0}, temperature=2.0)


def test_mixing_applies_after_mitigations_of_default_priority():
    assert Mixing.priority > 0
