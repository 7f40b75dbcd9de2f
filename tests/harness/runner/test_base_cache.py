"""A second run takes the evaluation of its base model from the cache, says so, and is otherwise the same run."""

from __future__ import annotations

import json

import pytest


@pytest.mark.slow
def test_second_run_measures_the_base_model_no_more(desk, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_EVALUATION_CACHE", "1")
    document = desk.document(mitigations={"lora": {"rank": 2}})
    first, second = desk.start(document), desk.start(document)
    scores = [json.loads((place / "scores.json").read_text())["stages"] for place in (first, second)]
    assert scores[0] == scores[1]
    cached = [json.loads((place / "data.json").read_text()).get("cached_evaluations") for place in (first, second)]
    assert cached == [None, list(document["evaluate"])]
    pages = [(place / "report.html").read_text() for place in (first, second)]
    assert ["measured by an earlier run" in page for page in pages] == [False, True]
