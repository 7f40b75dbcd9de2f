"""An error is one line: where, what, and what to do."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError, ManyErrors, RunError, raise_all


def test_error_is_one_line_of_location_problem_and_remedy():
    error = HarnessError("spec.json:3:1 train", "4 is not a string", "write a string")
    assert error.lines() == ["spec.json:3:1 train: 4 is not a string; write a string"]
    assert (error.where, error.what, error.hint) == ("spec.json:3:1 train", "4 is not a string", "write a string")


def test_error_without_a_remedy_ends_with_the_problem():
    assert str(HarnessError("data.jsonl:7", "the row is empty")) == "data.jsonl:7: the row is empty"


def test_line_breaks_in_a_message_become_spaces():
    assert HarnessError("plugin", "it said:\n  no\tway\n").lines() == ["plugin: it said: no way"]


def test_many_errors_give_one_line_each_including_nested_ones():
    inner = ManyErrors([HarnessError("b", "two"), HarnessError("c", "three")])
    assert ManyErrors([HarnessError("a", "one"), inner]).lines() == ["a: one", "b: two", "c: three"]


def test_raise_all_does_nothing_without_errors():
    assert raise_all(iter([])) is None


def test_raise_all_raises_the_only_error_itself():
    only = HarnessError("a", "one")
    with pytest.raises(HarnessError) as caught:
        raise_all([only])
    assert caught.value is only


def test_raise_all_raises_an_error_that_two_stages_have_once():
    with pytest.raises(HarnessError) as caught:
        raise_all([HarnessError("train", "one", "fix"), HarnessError("train", "one", "fix")])
    assert caught.value.lines() == ["train: one; fix"]


def test_raise_all_raises_several_errors_as_one():
    with pytest.raises(ManyErrors) as caught:
        raise_all([HarnessError("a", "one"), HarnessError("b", "two")])
    assert str(caught.value) == "a: one\nb: two"


@pytest.mark.parametrize(("error_class", "code"), [(HarnessError, 2), (RunError, 1)])
def test_bad_input_exits_with_2_and_a_failed_run_with_1(error_class, code):
    assert error_class("where", "what").exit_code == code
    assert isinstance(error_class("where", "what"), HarnessError)


def test_several_errors_of_bad_input_exit_with_2():
    assert ManyErrors([HarnessError("a", "one"), HarnessError("b", "two")]).exit_code == 2
