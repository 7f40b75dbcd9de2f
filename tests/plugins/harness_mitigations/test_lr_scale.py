"""A lower learning rate as a mitigation: it changes the plan only."""

from __future__ import annotations

import json

import pytest
from harness_mitigations.lr_scale import LrScale

from harness import registry
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.spec import plan, schema, spec
from harness.types import Stage, StageSource


def test_learning_rate_of_every_stage_is_scaled():
    parts = (StageSource("a", "domain"),)
    stages = (Stage("one", parts, {"learning_rate": 2e-5, "epochs": 1}), Stage("two", parts, {"learning_rate": 1e-3}))
    scaled = LrScale(0.1).transform_stages(stages)
    assert [stage.train["learning_rate"] for stage in scaled] == pytest.approx([2e-6, 1e-4])
    assert scaled[0].train["epochs"] == 1
    assert [stage.sources for stage in scaled] == [parts, parts]
    assert stages[0].train["learning_rate"] == 2e-5


def test_plan_of_a_spec_has_the_scaled_learning_rate(tmp_path):
    row = {"instruction": "a", "output": "b"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    document = {
        "name": "scaled",
        "model": {"path": "org/model"},
        "template": "chatml",
        "sources": {"rows": {"jsonl": {"path": "rows.jsonl"}}, "test": {"jsonl": {"path": "rows.jsonl"}}},
        "mode": {"domain": {"sources": ["rows"]}},
        "mitigations": {"lr_scale": {}},
        "train": {"learning_rate": 2e-5},
        "evaluate": {"test": {"source": "test", "metrics": "exact_match"}},
    }
    (tmp_path / "spec.json").write_text(json.dumps(document))
    found = registry.discover_plugins(
        [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
    )
    planned = plan.build_plan(spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found)
    assert planned.stages[0].train["learning_rate"] == pytest.approx(6e-6)
