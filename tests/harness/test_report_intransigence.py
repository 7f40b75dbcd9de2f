"""Intransigence: a joint arm's end against each task right after its own stage, in the metric's better direction."""

from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness import report
from harness.report import arms, kept
from harness.report.arms_view import View

RUN = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("made_run.py"))))
ITEMS = 40
SPEC = {"evaluate": {"helpdesk": {"role": "domain"}, "general": {"role": "general"}}}


def finished(folder, rouge, nll):
    """A run of as many stages as there are values: `helpdesk`, taught by the first stage, has them after each."""
    stages = [
        (
            RUN.made_evaluation(stage, "helpdesk", [value + 0.01 * (i % 3) for i in range(ITEMS)], [nats] * ITEMS),
            RUN.made_evaluation(stage, "general", [0.5] * ITEMS, [20.0] * ITEMS),
        )
        for stage, (value, nats) in enumerate(zip(rouge, nll, strict=True))
    ]
    plan = RUN.made_plan(len(rouge) - 1)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(SPEC))
    report.make(plan, stages, RUN.BY_SUITE, seed=0, run={}).write(folder)
    return kept.read(folder)


@pytest.fixture
def experiment(tmp_path):
    runs = {
        "stages": finished(tmp_path / "stages", (0.1, 0.4, 0.2), (30.0, 20.0, 25.0)),
        "joint": finished(tmp_path / "joint", (0.1, 0.5), (30.0, 10.0)),
    }
    return arms.make("sweep", tmp_path, runs, RUN.BY_SUITE, seed=0, joint="joint")


def test_it_is_the_joint_end_less_the_own_stage_positive_where_the_stages_learned_less(experiment):
    found = {one.score: one for one in experiment.intransigence}
    assert {one.arm for one in experiment.intransigence} == {"stages"}
    # Both suites are taught by the first stage; on `general` nothing moves.
    assert found["rougeL"].suites == ("helpdesk", "general")
    assert found["rougeL"].value.value == pytest.approx((0.5 - 0.4) / 2)
    ratio = RUN.METRICS["response_perplexity"]
    gap = ratio.aggregate("", (20.0, 10.0)) - ratio.aggregate("", (10.0, 10.0))
    assert found["response_perplexity"].value.value == pytest.approx(gap / 2), "a lower perplexity is more learned"
    assert found["rougeL"].value.n == 2 * ITEMS
    assert found["rougeL"].value.low <= found["rougeL"].value.value <= found["rougeL"].value.high


def test_it_is_shown_and_kept(experiment, tmp_path):
    stream = io.StringIO()
    Console(file=stream, width=120, color_system=None, highlight=False).print(View(experiment))
    assert "intransigence" in stream.getvalue()
    assert "'joint', trained on all tasks together" in stream.getvalue().replace("\n", " ")
    experiment.write(tmp_path)
    document = json.loads((tmp_path / "arms.json").read_text())
    assert document["joint"] == "joint"
    assert document["intransigence"][0]["value"]["value"] == pytest.approx(0.05)


def test_without_a_joint_arm_or_its_result_there_is_none(tmp_path):
    runs = {"stages": finished(tmp_path / "stages", (0.1, 0.4), (30.0, 20.0))}
    assert arms.make("one", tmp_path, runs, RUN.BY_SUITE, seed=0).intransigence == ()
    assert arms.make("one", tmp_path, runs, RUN.BY_SUITE, seed=0, joint="joint").intransigence == ()


def test_the_joint_arm_is_a_reference_and_is_not_recommended(experiment):
    assert "'joint' forgets" not in experiment.advice
