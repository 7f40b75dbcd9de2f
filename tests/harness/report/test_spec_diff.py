"""Differences of specs, and the swept parameter of an experiment."""

from __future__ import annotations

import pytest

from harness.report.spec_diff import component_of_key, find_swept_parameter, spec_differences


def build_spec(share=0.1, seed=0, **changes):
    mitigations = {} if share is None else {"mixing": {"share": share}}
    return {"name": str(share), "seed": seed, "train": {"epochs": 1}, "mitigations": mitigations, **changes}


def test_single_different_number_is_the_swept_parameter_and_a_missing_share_is_zero():
    parameter = find_swept_parameter({"a": build_spec(None), "b": build_spec(0.1), "c": build_spec(0.2, seed=1)})
    assert parameter is not None
    assert (parameter.key, parameter.is_share) == ("mitigations.mixing.share", True)
    assert parameter.values == {"a": 0.0, "b": 0.1, "c": 0.2}
    rates = find_swept_parameter(
        {"a": build_spec(train={"learning_rate": 1e-4}), "b": build_spec(train={"learning_rate": 2e-4})}
    )
    assert rates is not None
    assert (rates.values, rates.is_share) == ({"a": 1e-4, "b": 2e-4}, False)


@pytest.mark.parametrize(
    "specs",
    [
        {"a": build_spec(0.1), "b": build_spec(0.1)},
        {"a": build_spec(0.1), "b": build_spec(0.2, train={"epochs": 2})},
        {"a": build_spec(train={"packing": True}), "b": build_spec(train={"packing": False})},
        {"a": build_spec(train={"engine": "x"}), "b": build_spec(train={"engine": "y"})},
        {"a": build_spec(None), "b": build_spec(0.1)},
        {"a": {}, "b": build_spec(0.1)},
        {"a": build_spec(None), "b": build_spec(0.1, train={"epochs": 2}), "c": build_spec(0.1, train={"epochs": 3})},
    ],
)
def test_no_parameter_is_swept_if_other_keys_differ(specs):
    assert find_swept_parameter(specs) is None


def test_run_without_the_swept_component_has_no_value_unless_it_is_a_share():
    def ewc(strength):
        return {"train": {"epochs": 1}, "mitigations": {"ewc": {"strength": strength, "source": "a"}}}

    parameter = find_swept_parameter({"naive": build_spec(None), "one": ewc(1.0), "ten": ewc(10.0)})
    assert parameter is not None
    assert (parameter.key, parameter.values) == ("mitigations.ewc.strength", {"one": 1.0, "ten": 10.0})
    assert (parameter.format_value(10.0), parameter.is_share) == ("10", False)


def test_spec_differences_ignore_keys_that_do_not_affect_the_model():
    specs = {"a": build_spec(None, track={"experiment": "x"}), "b": build_spec(0.1)}
    assert spec_differences(specs) == {"mitigations.mixing.share": {"b": 0.1}}


def test_different_components_without_options_prevent_a_sweep():
    specs = {
        "a": build_spec(template={"alpaca": {}}, train={"learning_rate": 1e-4}),
        "b": build_spec(template={"llama2": {}}, train={"learning_rate": 2e-4}),
    }
    assert spec_differences(specs)["template.alpaca"] == {"a": {}}
    assert spec_differences(specs)["template.llama2"] == {"b": {}}
    assert find_swept_parameter(specs) is None, "what was gained may be the template's doing"
    known = {
        "a": build_spec(train={"early_stopping": None}),
        "b": build_spec(train={"early_stopping": {"patience": 1}}),
    }
    assert spec_differences(known) == {"train.early_stopping": {"a": None}, "train.early_stopping.patience": {"b": 1}}


def test_number_of_a_single_stage_can_be_swept():
    def build_stages(*strengths, **changes):
        stages = [
            {"name": str(i), "mitigations": {"ewc": {"strength": s}} if s else {}} for i, s in enumerate(strengths)
        ]
        return {"mode": {"continual": {"stages": stages}}, **changes}

    key = "mode.continual.stages.1.mitigations.ewc.strength"
    specs = {"naive": build_stages(1, None), "one": build_stages(1, 1), "ten": build_stages(1, 10)}
    assert spec_differences(specs) == {key: {"one": 1, "ten": 10}}
    parameter = find_swept_parameter(specs)
    assert parameter is not None
    assert (parameter.key, parameter.values) == (key, {"one": 1.0, "ten": 10.0})
    assert find_swept_parameter({**specs, "longer": build_stages(1, 10, 1)}) is None
    assert component_of_key(key) == "mode.continual.stages.1.mitigations.ewc"
    assert component_of_key("mode.mixed.domain") == "mode.mixed"
