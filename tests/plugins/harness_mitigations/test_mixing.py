"""Mixing states the share of general conversations in every stage, and changes nothing else."""

from __future__ import annotations

import pytest
from harness_mitigations.mixing import Mixing, mix
from hypothesis import given
from hypothesis import strategies as st

from harness import HarnessError, Part, Stage

STAGE = Stage("mixed", (Part("desk", "domain"), Part("chat", "general")), {"epochs": 2})


def test_the_general_part_gets_the_share_and_the_unit():
    mixed = mix(STAGE, 0.1, "tokens", None)
    assert mixed.parts == (Part("desk", "domain"), Part("chat", "general", 0.1, "tokens"))


def test_name_and_settings_of_the_stage_stay():
    mixed = mix(STAGE, 0.1, "rows", None)
    assert (mixed.name, mixed.train) == (STAGE.name, STAGE.train)


@given(st.integers(1, 6), st.floats(0.001, 0.999), st.sampled_from(["rows", "tokens", "loss_tokens"]))
def test_several_general_parts_split_the_share_evenly(number, share, unit):
    general = tuple(Part(f"chat-{index}", "general") for index in range(number))
    parts = mix(Stage("mixed", (Part("desk", "domain"), *general)), share, unit, None).parts[1:]
    assert [part.source for part in parts] == [part.source for part in general]
    assert sum(part.share for part in parts) == pytest.approx(share)
    assert len({part.share for part in parts}) == 1
    assert {part.unit for part in parts} == {unit}


def test_domain_parts_keep_what_another_mitigation_gave_them():
    given = Part("desk", "domain", 0.5, "rows")
    assert mix(Stage("mixed", (given, Part("chat", "general"))), 0.1, "tokens", None).parts[0] == given


def test_a_stage_without_general_parts_gets_the_source_named():
    mixed = mix(Stage("domain", (Part("desk", "domain"),)), 0.2, "loss_tokens", "chat")
    assert mixed.parts == (Part("desk", "domain"), Part("chat", "general", 0.2, "loss_tokens"))


def test_a_stage_with_general_parts_of_its_own_does_not_get_the_source_named():
    assert [part.source for part in mix(STAGE, 0.2, "rows", "other").parts] == ["desk", "chat"]


def test_a_stage_without_general_parts_and_no_source_named_is_refused():
    with pytest.raises(HarnessError) as caught:
        mix(Stage("domain", (Part("desk", "domain"),)), 0.1, "rows", None)
    assert str(caught.value) == (
        "mitigations.mixing: the stage 'domain' has no general source; "
        "name one in mitigations.mixing.source, or use the mode 'mixed'"
    )


@pytest.mark.parametrize("source", [None, "other"])
def test_a_stage_of_general_conversations_alone_is_refused(source):
    with pytest.raises(HarnessError, match="nothing to mix them into; leave mixing out"):
        mix(Stage("general", (Part("chat", "general"),)), 0.1, "rows", source)


def test_every_stage_is_mixed():
    stages = Mixing(0.1, "rows", None).plan((STAGE, Stage("two", STAGE.parts)))
    assert [stage.name for stage in stages] == ["mixed", "two"]
    assert [stage.parts[1].share for stage in stages] == [0.1, 0.1]


def test_mixing_applies_after_every_mitigation_of_the_usual_order():
    assert Mixing.order > 0
