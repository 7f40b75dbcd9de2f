"""The source of lm-evaluation-harness's tasks without that package; with it, see test_lm_eval.py."""

from __future__ import annotations

import sys

import pytest
from harness_sources.lm_eval_task import LmEvalSource

from harness import HarnessError


def test_a_missing_package_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(
        HarnessError, match=r"lm_eval:arc_easy: needs lm_eval 0\.4\.9 or newer: .*harness-sft\[oracle\]"
    ):
        next(LmEvalSource("arc_easy", 0, None).records())
