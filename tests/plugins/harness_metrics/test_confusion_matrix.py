"""The confusion matrices in the report of a run."""

from __future__ import annotations

import json

import harness_metrics
import pandas as pd
import pytest
from harness_metrics import confusion_matrix

OPTIONS = {"labels": ["order", "question"], "whole": False}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run folder whose items are given here."""
    items = {
        0: pd.DataFrame({"reference": ["order", "question"], "answer": ["an order", "an order"]}),
        -1: pd.DataFrame({"reference": ["order", "question"], "answer": ["An Order!", "no idea"]}),
    }

    class Run:
        def items(self, suite, stage):
            assert suite == "letters"
            return items[stage]

    monkeypatch.setattr(confusion_matrix, "load_run", lambda folder: Run())
    return tmp_path


def write_spec(folder, metrics):
    (folder / "spec.json").write_text(json.dumps({"evaluate": {"letters": {"metrics": metrics}}}))


def test_a_classification_suite_has_a_matrix_before_and_after(folder):
    write_spec(folder, {"classification": OPTIONS})
    (section,) = harness_metrics.harness_report_sections(folder)
    before, after = section.tables
    assert before.columns == ["reference", "order", "question", "(none)"]
    assert before.rows == [["order", 1, 0, 0], ["question", 1, 0, 0]]
    assert after.rows == [["order", 1, 0, 0], ["question", 0, 0, 1]]


def test_other_runs_have_no_section(folder):
    write_spec(folder, {"rouge": {}})
    assert harness_metrics.harness_report_sections(folder) == []
