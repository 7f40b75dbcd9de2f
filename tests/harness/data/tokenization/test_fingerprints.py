"""A template that differs from the training template is an error in evaluation and in continued training."""

from __future__ import annotations

import dataclasses

import pytest
from harness_templates.alpaca import Alpaca
from harness_templates.chatml import ChatML

from harness.data.tokenization.fingerprints import (
    TEMPLATE_FILE,
    load_template_fingerprint,
    save_template_fingerprint,
    template_fingerprint,
    template_mismatches,
)
from harness.errors import HarnessError
from harness.types import Plan, Suite

PLAN = Plan(
    name="plan",
    seed=0,
    model={},
    template=("chatml", {"system": None}),
    sources={},
    mitigations={},
    stages=(),
    suites=(
        Suite("own", "s", "domain", {}, None, 8, 8),
        Suite("other", "s", "domain", {}, None, 8, 8, ("alpaca", {})),
    ),
)


def mismatches(tokenizer, other=None, folder=None, template=None):
    where = ".".join
    return list(
        template_mismatches(PLAN, template or ChatML(None), {"other": other or ChatML(None)}, tokenizer, folder, where)
    )


def test_suite_template_that_renders_alike_is_accepted(tokenizer):
    assert mismatches(tokenizer, ChatML(None)) == []


def test_suite_template_that_renders_differently_is_an_error_at_its_key(tokenizer):
    (error,) = mismatches(tokenizer, Alpaca())
    assert error.where == "evaluate.other.template"
    assert "'alpaca' renders differently from the training template 'chatml'" in error.what
    assert '"checks": {"other_template": true}' in error.hint


def test_model_trained_with_the_same_template_is_accepted(tokenizer, tmp_path):
    save_template_fingerprint(tmp_path, PLAN, template_fingerprint(ChatML(None), tokenizer))
    assert load_template_fingerprint(tmp_path) == ("chatml", template_fingerprint(ChatML(None), tokenizer))
    assert mismatches(tokenizer, folder=tmp_path) == []


def test_model_trained_with_another_template_is_an_error(tokenizer, tmp_path):
    save_template_fingerprint(tmp_path, PLAN, template_fingerprint(Alpaca(), tokenizer))
    (error,) = mismatches(tokenizer, folder=tmp_path)
    assert error.where == "template"
    assert "trained with the template 'chatml', and this spec's 'chatml' renders differently" in error.what
    save_template_fingerprint(
        tmp_path, dataclasses.replace(PLAN, template=("alpaca", {})), template_fingerprint(Alpaca(), tokenizer)
    )
    (error,) = mismatches(tokenizer, folder=tmp_path)
    assert "trained with the template 'alpaca', and 'chatml' renders differently" in error.what


def test_model_without_a_record_is_accepted(tokenizer, tmp_path):
    assert load_template_fingerprint(tmp_path) is None
    assert mismatches(tokenizer, folder=tmp_path) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"template": {}}', '{"template": {"chatml": {}}}', "null"])
def test_unreadable_record_is_an_error(tmp_path, text):
    (tmp_path / TEMPLATE_FILE).write_text(text)
    with pytest.raises(HarnessError, match="cannot be read"):
        load_template_fingerprint(tmp_path)
