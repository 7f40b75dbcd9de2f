"""Replay: sources, shares and limits of the replayed rows."""

from __future__ import annotations

import pytest
from harness_mitigations.replay import Replay, add_replay

from harness import Example, InvalidRecord, WrittenResponse
from harness.testing.fixed_prompt_rows import FixedPromptRows, build_prompt_rows
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
    mitigation = Replay(share=0.1, unit="rows", buffer=7, answers="data", writing={}, keep=1)
    assert mitigation.transform_stages(stages) == add_replay(stages, 0.1, "rows", 7)


@pytest.mark.parametrize(
    ("buffer", "prompts", "limit"), [(None, None, None), (7, None, 7), (None, 5, 5), (7, 5, 5), (5, 7, 5)]
)
def test_the_model_answers_no_more_prompts_than_either_option_allows(buffer, prompts, limit):
    writing = {"prompts": prompts, "max_new_tokens": 9, "temperature": 1.0, "top_p": 1.0, "max_repetition": 0.2}
    mitigation = Replay(share=0.1, unit="rows", buffer=buffer, answers="model", writing=writing, keep=1)
    one, two = mitigation.transform_stages((create_stage("one", "a"), create_stage("two", "b")))
    assert one == create_stage("one", "a")
    assert two.sources[1] == StageSource("a", "replay", limit=limit, written_by="replay")


def test_the_answers_that_are_most_similar_to_the_data_are_kept():
    class Answering(FixedPromptRows):
        def write_responses(self, model, **settings):
            for example, text in zip(
                self.examples, ("no", "answer 1!", "Answer 2.", "", "an answer", "no"), strict=True
            ):
                yield WrittenResponse(example, text, "eos" if text else "empty", 2)

    writing = {"prompts": None, "max_new_tokens": 9, "temperature": 1.0, "top_p": 1.0, "max_repetition": 0.2}
    mitigation = Replay(share=0.1, unit="rows", buffer=None, answers="model", writing=writing, keep=0.6)
    prompts = Answering("chat", build_prompt_rows(count=6).examples)
    rows = list(mitigation.generate_rows(create_stage("two", "b"), None, prompts, seed=3))
    kept = [row.messages[-1].content for row in rows if isinstance(row, Example)]
    assert kept == ["answer 1!", "Answer 2.", "an answer"], "3 of the 5 that are not empty"
    rejected = [row.what for row in rows if isinstance(row, InvalidRecord)]
    assert rejected == ["less similar to the data's response", "empty", "less similar to the data's response"]
