"""Replay: sources, shares and limits of the replayed rows."""

from __future__ import annotations

from harness_mitigations.replay import Replay, add_replay

from harness.types import Share, Stage, StageSource


def create_stage(name, *domain, general=()):
    return Stage(
        name, tuple(StageSource(s, "domain") for s in domain) + tuple(StageSource(s, "general") for s in general)
    )


def test_the_first_stage_is_unchanged():
    one = (create_stage("one", "a"),)
    assert add_replay(one, 0.1, "loss_tokens", None) == one
    two = (create_stage("one", "a"), create_stage("two", "b"))
    assert add_replay(two, 0.1, "loss_tokens", 50)[0] == two[0]


def test_each_later_stage_gets_all_earlier_sources_with_one_share():
    _, two, three = add_replay(
        (create_stage("one", "a"), create_stage("two", "b", "c"), create_stage("three", "d")), 0.2, "tokens", 50
    )
    assert two.sources == (StageSource("b", "domain"), StageSource("c", "domain"), StageSource("a", "replay", limit=50))
    assert two.shares == (Share(("a",), 0.2, "tokens"),)
    assert [(part.source, part.role, part.limit) for part in three.sources[1:]] == [
        ("a", "replay", 50),
        ("b", "replay", 50),
        ("c", "replay", 50),
    ]
    assert three.shares == (Share(("a", "b", "c"), 0.2, "tokens"),)


def test_a_source_is_not_replayed_in_a_stage_that_trains_on_it():
    _, two, three = add_replay(
        (create_stage("one", "a"), create_stage("two", "a"), create_stage("three", "b")), 0.1, "rows", None
    )
    assert two == create_stage("two", "a")
    assert three.shares == (Share(("a",), 0.1, "rows"),)


def test_general_sources_are_not_replayed():
    _, two = add_replay((create_stage("one", "a", general=("g",)), create_stage("two", "b")), 0.1, "loss_tokens", None)
    assert [part.source for part in two.sources] == ["b", "a"]


def test_existing_shares_of_a_stage_are_kept():
    share = Share(("g",), 0.3)
    before = Stage("two", (StageSource("b", "domain"), StageSource("g", "general")), shares=(share,))
    _, two = add_replay((create_stage("one", "a"), before), 0.1, "loss_tokens", None)
    assert two.shares == (share, Share(("a",), 0.1, "loss_tokens"))


def test_mitigation_transforms_stages_like_its_function():
    stages = (create_stage("one", "a"), create_stage("two", "b"))
    assert Replay(share=0.1, unit="rows", buffer=7).transform_stages(stages) == add_replay(stages, 0.1, "rows", 7)
