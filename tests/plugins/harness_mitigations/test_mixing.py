"""Mixing states the share of general conversations in every stage, and changes nothing else."""

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


def mixing(share=0.1, unit="rows", source=None, weights=None, temperature=None, upsample=False, resample=False):
    return Mixing(share, unit, source, weights, temperature, upsample, resample)


def test_the_general_part_gets_the_share_and_the_unit():
    mixed = add_general_share(STAGE, 0.1, "tokens")
    assert mixed.sources == STAGE.sources
    assert mixed.shares == (Share(("chat",), 0.1, "tokens"),)


def test_a_share_of_nothing_is_a_share_and_means_no_general_row():
    mixed = add_general_share(STAGE, 0.0)
    assert mixed.shares == (Share(("chat",), 0.0),)
    assert list(shares.validate_shares(mixed)) == []


def test_name_and_settings_of_the_stage_stay():
    mixed = add_general_share(STAGE, 0.1, "rows")
    assert (mixed.name, mixed.train) == (STAGE.name, STAGE.train)


@given(st.integers(1, 6), st.floats(0.001, 0.999), st.sampled_from(["rows", "tokens", "loss_tokens"]))
def test_several_general_parts_have_the_share_together(number, share, unit):
    general = tuple(StageSource(f"chat-{index}", "general") for index in range(number))
    mixed = add_general_share(Stage("mixed", (StageSource("desk", "domain"), *general)), share, unit)
    assert mixed.shares == (Share(tuple(part.source for part in general), share, unit),)
    assert list(shares.validate_shares(mixed)) == []


def test_shares_that_another_mitigation_gave_stay_and_compose():
    parts = (StageSource("desk", "domain"), StageSource("old", "replay", 50), StageSource("chat", "general"))
    kept = Share(("old",), 0.2, "rows")
    mixed = add_general_share(Stage("second", parts, {}, (kept,)), 0.1)
    assert mixed.sources == parts
    assert mixed.shares == (kept, Share(("chat",), 0.1))
    assert list(shares.validate_shares(mixed)) == []


def test_all_that_can_be_asked_of_a_share_is_handed_on():
    (mixed,) = mixing(weights={"web": 1, "chat": 3}, upsample=True, resample=True).transform_stages((TWO,))
    assert mixed.shares == (Share(("chat", "web"), 0.1, "rows", (3, 1), None, True, True),)
    (mixed,) = mixing(temperature=2.0).transform_stages((TWO,))
    assert mixed.shares == (Share(("chat", "web"), 0.1, "rows", None, 2.0),)


@pytest.mark.parametrize("source", ["chat", ["chat", "web"]])
def test_a_stage_without_general_parts_gets_the_sources_named(source):
    named = [source] if isinstance(source, str) else source
    (mixed,) = mixing(0.2, "loss_tokens", source).transform_stages((DOMAIN,))
    assert mixed.sources == (StageSource("desk", "domain"), *(StageSource(name, "general") for name in named))
    assert mixed.shares == (Share(tuple(named), 0.2),)


def test_a_stage_with_general_parts_of_its_own_does_not_get_the_source_named():
    assert [part.source for part in add_general_share(STAGE, 0.2, "rows", ["other"]).sources] == ["desk", "chat"]


def test_a_stage_without_general_parts_and_no_source_named_is_refused():
    with pytest.raises(HarnessError) as caught:
        add_general_share(DOMAIN, 0.1, "rows")
    assert str(caught.value) == (
        "mitigations.mixing: the stage 'domain' has no general source; "
        "name one in mitigations.mixing.source, or use the mode 'mixed'"
    )


@pytest.mark.parametrize("sources", [[], ["other"]])
def test_a_stage_of_general_conversations_alone_is_refused(sources):
    with pytest.raises(HarnessError, match="nothing to mix them into; leave mixing out"):
        add_general_share(Stage("general", (StageSource("chat", "general"),)), 0.1, "rows", sources)


def test_every_stage_is_mixed_with_the_weights_of_its_own_sources():
    stages = mixing(weights={"chat": 1.0, "web": 2.0}).transform_stages((STAGE, TWO))
    assert [stage.name for stage in stages] == ["mixed", "two"]
    assert [stage.shares[0].weights for stage in stages] == [(1.0,), (1.0, 2.0)]


def test_a_general_source_without_a_weight_is_refused():
    with pytest.raises(
        HarnessError, match=r"mitigations\.mixing\.weights: the stage 'two' mixes in 'web', which has no"
    ):
        mixing(weights={"chat": 1.0}).transform_stages((TWO,))


def test_a_weight_of_what_is_never_mixed_in_is_refused():
    with pytest.raises(
        HarnessError, match="'desk' has a weight, and no stage mixes it in; the general sources are: chat"
    ):
        mixing(weights={"chat": 1.0, "desk": 2.0}).transform_stages((STAGE,))


def test_weights_and_temperature_exclude_each_other():
    with pytest.raises(HarnessError, match="split by weights and by temperature; give one of the two"):
        mixing(weights={"chat": 1.0}, temperature=2.0)


def test_mixing_applies_after_every_mitigation_of_the_usual_order():
    assert Mixing.priority > 0
