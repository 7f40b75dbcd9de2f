"""What arms a spec has, and what each changes."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import HarnessError
from harness.spec import arms
from harness.statistics import forgetting


def expand(**given: Any) -> tuple[arms.Arm, ...]:
    return arms.expand_arms({"named": {}, "matrix": {}, "baseline": None, "joint": None, **given}, "spec.json:1:1 arms")


def test_named_arms_and_the_matrix_make_every_combination_in_the_order_of_the_spec() -> None:
    made = expand(
        named={"naive": {}, "ewc": {"mitigations.ewc": {"source": "general"}}},
        matrix={"mitigations.mixing.share": [0.05, 0.1], "seed": [0, 1]},
    )
    assert [arm.name for arm in made] == [
        *(f"naive,share={share},seed={seed}" for share in (0.05, 0.1) for seed in (0, 1)),
        *(f"ewc,share={share},seed={seed}" for share in (0.05, 0.1) for seed in (0, 1)),
    ]
    assert made[5].changes == {"mitigations.ewc": {"source": "general"}, "mitigations.mixing.share": 0.05, "seed": 1}


def test_a_matrix_alone_makes_arms_and_keys_of_one_ending_keep_enough_of_it_to_differ() -> None:
    made = expand(matrix={"mitigations.ewc.strength": [1], "mitigations.l2sp.strength": [2.5], "mode": ["a b"]})
    assert [arm.name for arm in made] == ["ewc.strength=1,l2sp.strength=2.5,mode=a-b"]


def test_changes_become_overrides_in_json() -> None:
    arm = arms.Arm("one", {"mitigations.lora": None, "train.learning_rate": 1e-05, "template": "chatml"})
    assert arm.overrides() == ("mitigations.lora=null", "train.learning_rate=1e-05", 'template="chatml"')


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"named": {"a": {"seed": 1}}, "matrix": {"seed": [0]}}, "both set 'seed'"),
        ({"matrix": {"template": ["a b", "a/b"]}}, "two arms have the name 'template=a-b'"),
        ({"named": {"a": {"track.uri": "x"}}}, "changes 'track.uri', which all arms share"),
        ({"named": {"a": {}}, "baseline": "b"}, "there is no arm 'b'"),
        ({"named": {"a": {}}, "joint": "all"}, "there is no arm 'all'"),
        ({"named": {}, "matrix": {}}, "there are no arms"),
        ({"matrix": {key: [*range(500)] for key in ("seed", "train.steps", "train.batch_size")}}, "125,000,000 arms"),
        ({"named": {"a": {"": 1}}}, "changes '', which is not a dotted key"),
        ({"named": {"a": {"train.": 1}}}, "changes 'train.', which is not a dotted key"),
        ({"named": {"a": {"train.steps=3": 1}}}, "changes 'train.steps=3', which is not a dotted key"),
        ({"matrix": {"train.steps": [1], "train": [{}]}}, "changes 'train.steps' and then all of 'train'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given: dict[str, Any], told: str) -> None:
    with pytest.raises(HarnessError) as caught:
        expand(**given)
    assert told in caught.value.what
    assert caught.value.where.startswith("spec.json:1:1 arms")


def test_a_part_that_is_given_whole_may_be_refined_after_it() -> None:
    (made,) = expand(named={"lora": {"mitigations.lora": {"rank": 2}}}, matrix={"mitigations.lora.alpha": [4]})
    assert list(made.changes) == ["mitigations.lora", "mitigations.lora.alpha"]


def test_an_arm_that_replaces_settings_of_the_spec_is_told_what_it_loses() -> None:
    written = {"train": {"steps": 9, "learning_rate": 1}, "mitigations": {"lora": {"rank": 4}, "ewc": {}}, "mode": {}}
    made = expand(
        named={
            "flat": {"train": {"learning_rate": 2}, "mitigations.lora": {"alpha": 1}},
            "dotted": {"train.learning_rate": 2, "seed": 1},
            "chosen": {"mitigations": {"lora": {}}, "mode": {"domain": {}}, "mitigations.ewc": None},
        }
    )
    assert list(arms.override_warnings(made, written)) == [
        "the arm 'flat' replaces all of 'train', which resets steps to the default; to change a single key, write "
        "'train.learning_rate'",
        "the arm 'flat' replaces all of 'mitigations.lora', which resets rank to the default; to change a single key, "
        "write 'mitigations.lora.alpha'",
    ]


def test_arms_are_chosen_by_name_in_the_order_of_the_spec() -> None:
    made = expand(named={"a": {}, "b": {}, "c": {}})
    assert [arm.name for arm in arms.select_arms(made, ["c", "a"])] == ["a", "c"]
    assert arms.select_arms(made, []) == made
    with pytest.raises(HarnessError, match="there is no such arm"):
        arms.select_arms(made, ["d"])


def test_axes_that_cannot_be_are_named_before_anything_runs() -> None:
    def told(**axes: str | None) -> list[str]:
        given = {"gain": None, "forgetting": None, **axes}
        return [str(error) for error in arms.validate_axes(given, ["desk", "chat"], "spec.json:1:1 arms")]

    assert told() == []
    assert told(gain="desk/rougeL", forgetting="chat/response_nll") == []
    assert told(forgetting="forgetting:response_nll") == []
    (wrong,) = told(gain="dask/rougeL")
    assert wrong.startswith("spec.json:1:1 arms.gain")
    assert "there is no suite 'dask'" in wrong
    assert "desk, chat" in wrong
    assert "does not name its suite" in told(forgetting="rougeL")[0]
    assert "not a summary of the matrix" in told(gain="forgetting:rougeL")[0]
    assert "'average_accuracy' is not a summary of forgetting" in told(forgetting="average_accuracy:nll")[0]


def test_every_summary_that_tells_of_a_loss_is_one_that_reports_have() -> None:
    assert set(arms.FORGETTING_SIGN) <= set(forgetting.SUMMARIES) | set(forgetting.GENERAL_SUMMARIES)
    assert all((sign > 0) == ("forgetting" in name) for name, sign in arms.FORGETTING_SIGN.items())
