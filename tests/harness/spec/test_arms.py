"""Arms of a spec are expanded, validated and selected; an invalid arm is an error with its location."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import ComponentError, HarnessError
from harness.spec import arms
from harness.statistics import forgetting


def expand_spec_arms(**keys: Any) -> tuple[arms.Arm, ...]:
    defaults = {"named": {}, "matrix": {}, "seeds": None, "baseline": None, "joint": None, "gate": None}
    return arms.expand_arms({**defaults, **keys}, "spec.json:1:1 arms")


def test_named_arms_and_matrix_give_every_combination_in_spec_order() -> None:
    expanded = expand_spec_arms(
        named={"naive": {}, "ewc": {"mitigations.ewc": {"source": "general"}}},
        matrix={"mitigations.mixing.share": [0.05, 0.1], "train.steps": [3, 4]},
    )
    assert [arm.name for arm in expanded] == [
        *(f"naive,share={share},steps={steps}" for share in (0.05, 0.1) for steps in (3, 4)),
        *(f"ewc,share={share},steps={steps}" for share in (0.05, 0.1) for steps in (3, 4)),
    ]
    assert [arm.method for arm in expanded] == [arm.name for arm in expanded]
    assert expanded[5].changes == {
        "mitigations.ewc": {"source": "general"},
        "mitigations.mixing.share": 0.05,
        "train.steps": 4,
    }


@pytest.mark.parametrize(("seeds", "expected"), [([0, 7], (0, 7)), (2, (0, 1))])
def test_every_arm_runs_with_every_seed_and_stays_one_arm(seeds: Any, expected: tuple[int, ...]) -> None:
    runs = expand_spec_arms(named={"naive": {}, "ewc": {"mitigations.ewc": {}}}, seeds=seeds, baseline="naive")
    first, second = expected
    assert [run.name for run in runs] == [
        f"naive,seed={first}", f"ewc,seed={first}", f"naive,seed={second}", f"ewc,seed={second}",
    ]  # fmt: skip
    assert [run.method for run in runs] == ["naive", "ewc"] * 2
    assert runs[3].changes == {"mitigations.ewc": {}, "seed": second}
    assert arms.select_arms(runs, ["ewc"]) == (runs[1], runs[3])
    assert arms.select_arms(runs, [f"naive,seed={second}", "ewc"]) == (runs[1], runs[2], runs[3])
    with pytest.raises(HarnessError, match=r"no such arm.*naive, ewc, naive,seed="):
        arms.select_arms(runs, ["naive,seed=99"])


def test_several_baselines_are_controls() -> None:
    runs = expand_spec_arms(named={"naive": {}, "slow": {}, "ewc": {}}, baseline=["slow", "naive"])
    assert len(runs) == 3
    assert arms.baseline_names({"baseline": ["slow", "naive"]}) == ("slow", "naive")
    assert arms.baseline_names({"baseline": "slow"}) == ("slow",)
    assert arms.baseline_names({"baseline": None}) == ()


def test_matrix_alone_gives_arms_whose_names_keep_enough_of_each_key_to_differ() -> None:
    expanded = expand_spec_arms(
        matrix={"mitigations.ewc.strength": [1], "mitigations.l2sp.strength": [2.5], "mode": ["a b"]}
    )
    assert [arm.name for arm in expanded] == ["ewc.strength=1,l2sp.strength=2.5,mode=a-b"]


def test_changes_are_converted_to_json_overrides() -> None:
    arm = arms.Arm("one", {"mitigations.lora": None, "train.learning_rate": 1e-05, "template": "chatml"})
    assert arm.overrides() == ("mitigations.lora=null", "train.learning_rate=1e-05", 'template="chatml"')


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"named": {"a": {"train.steps": 1}}, "matrix": {"train.steps": [2]}}, "both set 'train.steps'"),
        ({"named": {"a": {"seed": 1}}}, "runs that differ in their seed are one arm"),
        ({"matrix": {"seed": [0, 1]}}, "runs that differ in their seed are one arm"),
        ({"named": {"a": {}}, "baseline": ["a", "b"]}, "there is no arm 'b'"),
        ({"named": {"a": {}}, "gate": "b"}, "there is no arm 'b'"),
        ({"named": {"a": {}, "b": {}}, "joint": "b", "baseline": ["a", "b"]}, "'b' is a reference"),
        ({"named": {"a": {}, "b": {}}, "joint": "b", "gate": "b"}, "'b' is a reference"),
        ({"named": {str(number): {} for number in range(101)}, "seeds": 100}, "10,100 arms"),
        ({"matrix": {"template": ["a b", "a/b"]}}, "two arms have the name 'template=a-b'"),
        ({"named": {"a": {"track.mlflow.uri": "x"}}}, "changes 'track.mlflow.uri', which all arms share"),
        ({"named": {"a": {}}, "baseline": "b"}, "there is no arm 'b'"),
        ({"named": {"a": {}}, "joint": "all"}, "there is no arm 'all'"),
        ({"named": {"a": {}}, "matrix": {"train.steps": [0, 1]}, "baseline": "a"}, "there is no arm 'a'"),
        ({"named": {}, "matrix": {}}, "there are no arms"),
        (
            {"matrix": {key: [*range(500)] for key in ("train.epochs", "train.steps", "train.batch_size")}},
            "125,000,000 arms",
        ),
        ({"named": {"a": {"": 1}}}, "changes '', which is not a dotted key"),
        ({"named": {"a": {"train.": 1}}}, "changes 'train.', which is not a dotted key"),
        ({"named": {"a": {"train.steps=3": 1}}}, "changes 'train.steps=3', which is not a dotted key"),
        ({"matrix": {"train.steps": [1], "train": [{}]}}, "changes 'train.steps' and then all of 'train'"),
    ],
)
def test_invalid_arms_are_reported_with_the_wrong_value(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(HarnessError) as caught:
        expand_spec_arms(**keys)
    assert message in caught.value.what
    assert caught.value.where.startswith("spec.json:1:1 arms")


def test_baseline_that_names_arms_of_a_matrix_is_an_error_with_the_name_of_a_single_arm() -> None:
    with pytest.raises(HarnessError) as caught:
        expand_spec_arms(named={"a": {}, "ab": {}}, matrix={"train.steps": [3, 4]}, baseline="a")
    assert caught.value.hint == "name one arm of the matrix, e.g. 'a,steps=3'"


def test_arm_may_replace_a_section_and_then_change_one_of_its_keys() -> None:
    (arm,) = expand_spec_arms(named={"lora": {"mitigations.lora": {"rank": 2}}}, matrix={"mitigations.lora.alpha": [4]})
    assert list(arm.changes) == ["mitigations.lora", "mitigations.lora.alpha"]


def test_arm_that_replaces_a_section_gets_a_warning_that_names_the_reset_keys() -> None:
    spec_sections = {
        "train": {"steps": 9, "learning_rate": 1},
        "mitigations": {"lora": {"rank": 4}, "ewc": {}},
        "mode": {},
    }
    expanded = expand_spec_arms(
        named={
            "flat": {"train": {"learning_rate": 2}, "mitigations.lora": {"alpha": 1}},
            "dotted": {"train.learning_rate": 2, "train.steps": 1},
            "chosen": {"mitigations": {"lora": {}}, "mode": {"domain": {}}, "mitigations.ewc": None},
        }
    )
    assert list(arms.override_warnings(expanded, spec_sections)) == [
        "the arm 'flat' replaces all of 'train', which resets steps to the default; to change a single key, write "
        "'train.learning_rate'",
        "the arm 'flat' replaces all of 'mitigations.lora', which resets rank to the default; to change a single key, "
        "write 'mitigations.lora.alpha'",
    ]


@pytest.mark.parametrize("cause", [KeyError("z"), None])
def test_an_error_in_an_arm_keeps_its_class_and_what_a_component_raised(cause: Exception | None) -> None:
    (arm,) = expand_spec_arms(named={"low": {}})
    with pytest.raises(ComponentError, match="arm 'low': metric x: broke") as caught, arms.arm_error_context(arm):
        raise ComponentError("metric x", "broke") from cause
    assert caught.value.__cause__ is cause


def test_arms_are_selected_by_name_in_spec_order() -> None:
    expanded = expand_spec_arms(named={"a": {}, "b": {}, "c": {}})
    assert [arm.name for arm in arms.select_arms(expanded, ["c", "a"])] == ["a", "c"]
    assert arms.select_arms(expanded, []) == expanded
    with pytest.raises(HarnessError, match="there is no such arm"):
        arms.select_arms(expanded, ["d"])


def test_invalid_gain_and_forgetting_scores_are_reported() -> None:
    def axis_errors(**axes: str | None) -> list[str]:
        all_axes = {"gain": None, "forgetting": None, **axes}
        return [str(error) for error in arms.validate_axes(all_axes, ["desk", "chat"], "spec.json:1:1 arms")]

    assert axis_errors() == []
    assert axis_errors(gain="desk/rougeL", forgetting="chat/response_nll") == []
    assert axis_errors(forgetting="forgetting:response_nll") == []
    (error,) = axis_errors(gain="dask/rougeL")
    assert error.startswith("spec.json:1:1 arms.gain")
    assert "there is no suite 'dask'" in error
    assert "desk, chat" in error
    assert "does not name its suite" in axis_errors(forgetting="rougeL")[0]
    assert "not a summary of the matrix" in axis_errors(gain="forgetting:rougeL")[0]
    assert "'average_accuracy' is not a summary of forgetting" in axis_errors(forgetting="average_accuracy:nll")[0]


def test_forgetting_sign_lists_only_summaries_that_reports_contain() -> None:
    assert set(arms.FORGETTING_SIGN) <= set(forgetting.SUMMARIES) | set(forgetting.GENERAL_SUMMARIES)
    assert all((sign > 0) == ("forgetting" in name) for name, sign in arms.FORGETTING_SIGN.items())
