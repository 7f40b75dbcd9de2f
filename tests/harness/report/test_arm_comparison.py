"""Comparison of arms over the same items, from the files of finished runs."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from support import example_run, html_reader

from harness import gate
from harness.errors import HarnessError
from harness.gate import ScoreForGate
from harness.report import arm_comparison, arm_experiment, arm_gate, finished_run, run_report
from harness.report.arm_experiment import ArmExperiment
from harness.report.html import write
from harness.statistics.intervals import Estimate
from harness.terminal.arms_table import format_arms
from harness.utils.formatting import format_p_value
from harness.utils.json_files import write_scores

SPEC = {"evaluate": {"helpdesk": {"role": "domain"}, "general": {"role": "general"}}}
ITEMS = 60


def write_finished_run(
    folder: Path, gain: float, rise: float, noise: float = 0.02, mixing: float | None = None
) -> finished_run.FinishedRun:
    """Write a run: ROUGE-L on the help desk gains `gain`, general NLL rises by `rise` nats per item."""
    wobble = [noise * math.sin(i) for i in range(ITEMS)]
    base = [0.3 + 0.001 * i for i in range(ITEMS)]
    nll = [20.0 + i % 5 for i in range(ITEMS)]
    stages = [
        (example_run.made_evaluation(0, "helpdesk", base, nll), example_run.made_evaluation(0, "general", base, nll)),
        (
            example_run.made_evaluation(
                1, "helpdesk", [one + gain + w for one, w in zip(base, wobble, strict=True)], nll
            ),
            example_run.made_evaluation(
                1, "general", base, [one + rise + 10 * w for one, w in zip(nll, wobble, strict=True)]
            ),
        ),
    ]
    folder.mkdir(parents=True)
    spec = SPEC if mixing is None else {**SPEC, "mitigations": {"mixing": {"share": mixing}}}
    (folder / "spec.json").write_text(json.dumps(spec))
    write_scores(stages, ["base", "mixed"], folder)
    return finished_run.load_finished_run(folder)


@pytest.fixture
def experiment(tmp_path: Path) -> arm_comparison.ArmComparison:
    runs = {
        "naive": write_finished_run(tmp_path / "naive", 0.3, 5.0),
        "mixing": write_finished_run(tmp_path / "mixing", 0.29, 0.5),
        "frozen": write_finished_run(tmp_path / "frozen", 0.0, 0.0),
        "worse": write_finished_run(tmp_path / "worse", 0.2, 6.0),
    }
    return arm_comparison.compare_arms(
        "sweep",
        tmp_path,
        runs,
        example_run.BY_SUITE,
        arm_comparison.ComparisonSettings(gain_score="helpdesk/rougeL", forgetting_score="general/response_perplexity"),
        seed=0,
        missing={"ewc": "interrupted"},
    )


def find_score(experiment: arm_comparison.ArmComparison, arm: str, score: str) -> arm_comparison.ArmScore:
    return next(one for one in experiment.scores if (one.arm, f"{one.suite}/{one.score}") == (arm, score))


def test_arm_is_compared_with_baseline_over_same_items(experiment: arm_comparison.ArmComparison) -> None:
    rouge = find_score(experiment, "mixing", "helpdesk/rougeL")
    assert rouge.n == ITEMS
    assert rouge.change.value == pytest.approx(0.29, abs=0.001)
    assert rouge.against is not None
    assert rouge.against.value == pytest.approx(-0.01)
    assert find_score(experiment, "naive", "helpdesk/rougeL").against is None
    perplexity = find_score(experiment, "mixing", "general/response_perplexity")
    assert perplexity.verdict == "better", "the perplexity rose less than the baseline's"
    assert find_score(experiment, "worse", "general/response_perplexity").verdict == "worse"


def test_p_values_are_adjusted_for_all_comparisons(experiment: arm_comparison.ArmComparison) -> None:
    tested = [one for one in experiment.scores if one.p is not None]
    assert len(tested) == 3 * 4
    assert all(one.p_holm >= one.p for one in tested)
    smallest = min(tested, key=lambda one: one.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 12 * smallest.p))


def test_gain_and_forgetting_are_positive_if_there_is_some(
    experiment: arm_comparison.ArmComparison,
) -> None:
    points = {point.arm: point for point in experiment.points}
    assert points["naive"].gain.value == pytest.approx(0.3, abs=0.002)
    assert points["naive"].forgotten.value > points["mixing"].forgotten.value > 0, "a rising perplexity is forgetting"
    assert points["naive"].forgotten.low < points["naive"].forgotten.value < points["naive"].forgotten.high
    assert points["mixing"].recovered == pytest.approx(
        1 - points["mixing"].forgotten.value / points["naive"].forgotten.value
    )
    assert points["naive"].recovered is None
    assert [point.arm for point in experiment.points if point.efficient] == ["naive", "mixing", "frozen"]


def test_change_equals_that_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is the same in both, in closed form if there is one."""
    monkeypatch.setattr(type(example_run.METRICS["rouge"]), "is_ratio", lambda self, name: True)
    run = write_finished_run(tmp_path / "naive", 0.3, 5.0)
    own = run_report.build_report(
        example_run.made_plan(), list(run.evaluations), example_run.BY_SUITE, seed=0, run_info={}
    )
    change = next(one.difference for one in own.changes if (one.suite, one.name) == ("helpdesk", "rougeL"))
    comparison = arm_comparison.compare_arms(
        "sweep",
        tmp_path,
        {"naive": run},
        example_run.BY_SUITE,
        arm_comparison.ComparisonSettings(gain_score="helpdesk/rougeL"),
        seed=0,
    )
    assert find_score(comparison, "naive", "helpdesk/rougeL").change == comparison.points[0].gain == change
    assert change.method == "t"


def test_p_value_is_never_displayed_as_zero() -> None:
    assert [format_p_value(p) for p in (0.0001, 0.001, 0.25, math.nan, None)] == ["<0.001", "0.001", "0.250", "–", "–"]


def test_sweep_is_recommended_by_paired_items(tmp_path: Path) -> None:
    runs = {
        f"share={share}": write_finished_run(tmp_path / str(share), 0.3, rise, mixing=share)
        for share, rise in ((0.0, 5.0), (0.05, 0.51), (0.25, 0.5))
    }
    comparison = arm_comparison.compare_arms(
        "sweep",
        tmp_path,
        runs,
        example_run.BY_SUITE,
        arm_comparison.ComparisonSettings(gain_score="helpdesk/rougeL", forgetting_score="general/response_perplexity"),
        seed=0,
    )
    assert "mitigations.mixing.share of 5 % is enough" in comparison.recommendation_text
    assert "; 0 % forgets more than that" in comparison.recommendation_text


def write_two_stage_run(folder: Path, *, kept: float, seed: int = 0) -> finished_run.FinishedRun:
    """Write a run of two stages: ROUGE-L on the help desk rises to 0.6 by the first one and then falls to `kept`."""
    wobble = [0.02 * math.sin(i + seed) for i in range(ITEMS)]
    nll = [20.0 + i % 5 for i in range(ITEMS)]
    levels = {"helpdesk": (0.3, 0.6, kept), "general": (0.3, 0.3, 0.5 + 0.01 * seed)}
    stages = [
        tuple(
            example_run.made_evaluation(stage, suite, [values[stage] + w * (stage + 1) for w in wobble], nll)
            for suite, values in levels.items()
        )
        for stage in range(3)
    ]
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({**SPEC, "seed": seed}))
    plan = example_run.made_plan(2)
    run_report.build_report(plan, stages, example_run.BY_SUITE, seed=0, run_info={}).write(folder)
    return finished_run.load_finished_run(folder)


def test_forgetting_axis_may_be_a_matrix_summary(tmp_path: Path) -> None:
    runs = {name: write_two_stage_run(tmp_path / name, kept=kept) for name, kept in (("naive", 0.2), ("ewc", 0.65))}
    own = {name: run_report.gate_scores_of_run(run.folder) for name, run in runs.items()}

    def compare(axis: str) -> arm_comparison.ArmComparison:
        return arm_comparison.compare_arms(
            "one",
            tmp_path,
            runs,
            example_run.BY_SUITE,
            arm_comparison.ComparisonSettings(gain_score="general/rougeL", forgetting_score=axis),
            seed=0,
        )

    comparison = compare("forgetting:rougeL")
    assert comparison.forgetting == "forgetting:rougeL"
    assert [one.forgotten for one in comparison.points] == [own[arm]["forgetting:rougeL"].after for arm in runs]
    naive, ewc = (one.forgotten.value for one in comparison.points)
    assert naive > 0 > ewc
    assert comparison.points[1].recovered == pytest.approx(1 - ewc / naive)
    turned = compare("backward_transfer:rougeL").points[0].forgotten
    given = own["naive"]["backward_transfer:rougeL"].after
    assert (turned.value, turned.low, turned.high) == (-given.value, -given.high, -given.low)
    with pytest.raises(HarnessError, match=r"no summary 'forgetting:bleu'.*forgetting:rougeL"):
        compare("forgetting:bleu")
    with pytest.raises(HarnessError, match="no summary 'average_accuracy:response_nll'"):
        compare("average_accuracy:response_nll")


def test_summaries_of_two_arms_are_paired_by_item(tmp_path: Path) -> None:
    """Both arms waver on the same items, so their difference is known much better than either."""
    runs = {
        name: {0: write_two_stage_run(tmp_path / name, kept=kept)} for name, kept in (("naive", 0.2), ("ewc", 0.25))
    }
    experiment = ArmExperiment(runs, "naive", example_run.BY_SUITE, 0)
    gap = experiment.forgetting_difference("naive", "ewc", "forgetting:rougeL")
    points = [run_report.gate_scores_of_run(by_seed[0].folder)["forgetting:rougeL"].after for by_seed in runs.values()]
    assert gap.value == pytest.approx(points[0].value - points[1].value)
    assert gap.high - gap.low < 0.01 * (points[0].high - points[0].low)
    turned = experiment.forgetting_difference("naive", "ewc", "backward_transfer:rougeL")
    assert turned.value == pytest.approx(gap.value), "in the direction of forgetting"


@pytest.fixture
def seeded(tmp_path: Path) -> dict[str, dict[int, finished_run.FinishedRun]]:
    """Three arms with three seeds each; the arm without mitigation differs most between seeds."""
    levels = {"naive": (0.2, 0.3, 0.1), "slow": (0.5, 0.52, 0.51), "ewc": (0.55, 0.56, 0.57)}
    return {
        arm: {
            seed: write_two_stage_run(tmp_path / f"arms/{arm},seed={seed}", kept=kept, seed=seed)
            for seed, kept in enumerate(values)
        }
        for arm, values in levels.items()
    }


SEEDED_SETTINGS = arm_comparison.ComparisonSettings(
    baseline="naive",
    controls=("naive", "slow"),
    gain_score="general/rougeL",
    forgetting_score="forgetting:rougeL",
)


def test_seeds_are_pooled_and_paired_with_the_baseline_of_the_same_seed(seeded, tmp_path: Path) -> None:
    one = arm_comparison.compare_arms("sweep", tmp_path, seeded, example_run.BY_SUITE, SEEDED_SETTINGS, seed=0)
    assert list(one.arms) == ["naive", "slow", "ewc"]
    score = find_score(one, "ewc", "helpdesk/rougeL")
    by_seed = [
        run_report.gate_scores_of_run(seeded[arm][seed].folder)["helpdesk/rougeL"].after.value
        for arm in ("ewc", "naive")
        for seed in range(3)
    ]
    assert score.against is not None
    assert score.against.value == pytest.approx(sum(by_seed[:3]) / 3 - sum(by_seed[3:]) / 3)
    single = find_score(
        arm_comparison.compare_arms(
            "one", tmp_path, {arm: seeded[arm][0] for arm in seeded}, example_run.BY_SUITE, SEEDED_SETTINGS, seed=0
        ),
        "ewc",
        "helpdesk/rougeL",
    )
    assert single.against is not None
    assert score.against.high - score.against.low > 5 * (single.against.high - single.against.low), "seeds differ"
    assert sum(each.p is not None for each in one.scores) == 2 * 4, "Holm's family has arms and scores, not seeds"
    point = one.points[0]
    assert point.seeds == (0, 1, 2)
    assert point.forgotten_spread is not None
    assert point.forgotten.value == pytest.approx(sum(point.forgotten_spread.values) / 3)
    assert point.forgotten_spread.sd == pytest.approx(0.05, abs=0.01), "a mean over two tasks, of which one differs"
    own = run_report.gate_scores_of_run(seeded["naive"][2].folder)["forgetting:rougeL"].after.value
    assert point.forgotten_spread.values[2] == pytest.approx(own)
    assert one.advised.rests == "Based on 3 seeds; the intervals cover seeds and items"
    assert one.advised.arm == "ewc"


def test_arms_without_a_common_seed_are_not_compared(seeded, tmp_path: Path) -> None:
    runs = {**seeded, "slow": {2: seeded["slow"][2]}, "naive": {0: seeded["naive"][0], 1: seeded["naive"][1]}}
    one = arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, SEEDED_SETTINGS, seed=0)
    assert {score.arm for score in one.scores} == {"naive", "ewc"}
    assert find_score(one, "ewc", "helpdesk/rougeL").seeds == 2
    assert one.advised.note == "'slow' has no seed in common with 'naive': excluded"
    assert "slow has a result for seed 2 only; arms are compared over the seeds that both have" in one.notes


def test_other_arms_are_compared_with_the_best_control(seeded, tmp_path: Path) -> None:
    one = arm_comparison.compare_arms("sweep", tmp_path, seeded, example_run.BY_SUITE, SEEDED_SETTINGS, seed=0)
    (entry,) = one.best_control
    assert (entry.arm, entry.control, entry.verdict) == ("ewc", "slow", "better")
    points = {point.arm: point for point in one.points}
    assert entry.forgotten.value == pytest.approx(points["ewc"].forgotten.value - points["slow"].forgotten.value)
    settings = replace(SEEDED_SETTINGS, controls=("naive",))
    single = arm_comparison.compare_arms("sweep", tmp_path, seeded, example_run.BY_SUITE, settings, seed=0)
    assert single.best_control == ()


@pytest.mark.slow
def test_gate_judges_the_recommended_arm_with_its_choice_accounted_for(seeded, tmp_path: Path) -> None:
    condition = {
        **dict.fromkeys(gate.TESTS), "score": "rougeL", "summary": "forgetting", "judge_by": "bound", "tier": "blocks",
    }  # fmt: skip

    def judge(**keys) -> arm_gate.ArmGate:
        settings = replace(SEEDED_SETTINGS, gate_conditions=[{**condition, "at_most": 0.1}], **keys)
        one = arm_comparison.compare_arms("sweep", tmp_path, seeded, example_run.BY_SUITE, settings, seed=0)
        assert one.gate is not None
        return one.gate

    recommended, named = judge(), judge(gate_arm="ewc")
    assert (recommended.arm, recommended.candidates) == ("ewc", 3)
    assert (named.arm, named.candidates) == ("ewc", 1)
    assert recommended.results[0].bound > named.results[0].bound, "its interval holds for three arms together"
    assert recommended.results[0].found == pytest.approx(named.results[0].found)
    assert named.outcome == named.outcomes["ewc"]
    assert judge(gate_arm="naive").outcome != "passed"
    assert judge(gate_arm="nobody").text == "gate: not enough evidence: there is no arm to judge"


def test_seeds_controls_and_gate_are_on_the_page_and_in_the_terminal(seeded, tmp_path: Path) -> None:
    condition = {
        **dict.fromkeys(gate.TESTS), "score": "helpdesk/rougeL", "summary": None, "judge_by": "bound", "tier": "blocks",
    }  # fmt: skip
    settings = replace(SEEDED_SETTINGS, gate_conditions=[{**condition, "gains_at_least": 0.1}])
    one = arm_comparison.compare_arms("sweep", tmp_path, seeded, example_run.BY_SUITE, settings, seed=0)
    one.write(tmp_path)
    root = html_reader.parse_html(write.write_experiment_page(tmp_path).read_text(encoding="utf-8"))
    for point in one.points:
        assert point.gain_spread is not None
        row = root.find("tr", data_seeds=f"{point.arm}:gain")
        shown = [float(data.attrs["value"]) for data in row.find_all("data")]
        assert shown[:3] == pytest.approx(point.gain_spread.values)
        assert shown[4:7] == pytest.approx([point.gain.value, point.gain.low, point.gain.high])
    shown = [float(data.attrs["value"]) for data in root.find("tr", data_control="ewc").find_all("data")]
    assert shown[3:] == pytest.approx([getattr(one.best_control[0].forgotten, key) for key in ("value", "low", "high")])
    assert "passed" in root.find("section", id="gate").text
    statements = [item.text for item in root.find("ul", class_="verdict").find_all("li")]
    assert any(
        text.startswith("'ewc' forgets less than the best control, 'slow': difference −0.0") for text in statements
    )
    stream = io.StringIO()
    Console(file=stream, width=150, color_system=None, highlight=False).print(format_arms(one))
    text = stream.getvalue()
    assert len([line for line in text.splitlines() if re.search(r" (naive|slow|ewc) +3 ", line)]) == 3
    assert "gate: passed by arm 'ewc', recommended among 3" in text


def test_default_axes_follow_roles_and_unknown_ones_are_rejected(tmp_path: Path) -> None:
    runs = {"naive": write_finished_run(tmp_path / "naive", 0.3, 5.0)}
    comparison = arm_comparison.compare_arms("one", tmp_path, runs, example_run.BY_SUITE, seed=0)
    assert (comparison.gain, comparison.forgetting) == ("helpdesk/rougeL", "general/rougeL")
    with pytest.raises(HarnessError, match=r"no suite has the score 'helpdesk/blue'.*helpdesk/rougeL"):
        arm_comparison.compare_arms(
            "one",
            tmp_path,
            runs,
            example_run.BY_SUITE,
            arm_comparison.ComparisonSettings(gain_score="helpdesk/blue"),
            seed=0,
        )
    with pytest.raises(HarnessError, match="no arm has a result"):
        arm_comparison.compare_arms("none", tmp_path, {}, example_run.BY_SUITE, seed=0)


def test_missing_baseline_is_replaced_with_a_note(tmp_path: Path) -> None:
    runs = {"mixing": write_finished_run(tmp_path / "mixing", 0.3, 1.0)}
    comparison = arm_comparison.compare_arms(
        "one", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(baseline="naive"), seed=0
    )
    assert comparison.baseline == "mixing"
    assert comparison.recommendation_text.startswith("the baseline 'naive' has no result yet")


def test_experiment_is_displayed_and_written(experiment: arm_comparison.ArmComparison, tmp_path: Path) -> None:
    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None, highlight=False).print(format_arms(experiment))
    text = stream.getvalue()
    assert "no result of ewc: interrupted" in text
    assert "forgotten in general/response_perplexity" in text
    assert experiment.recommendation_text[:40] in text.replace("\n", " ")
    experiment.write(tmp_path)
    document = json.loads((tmp_path / "arms.json").read_text())
    assert document["points"][1]["arm"] == "mixing"
    assert len(document["scores"]) == 16


def test_loaded_run_has_the_written_scores(tmp_path: Path) -> None:
    run = write_finished_run(tmp_path / "one", 0.3, 5.0)
    assert run.stages == ("base", "mixed")
    last = run.last_evaluation("helpdesk")
    assert last is not None
    written = example_run.made_evaluation(1, "helpdesk", [0.6] * ITEMS, [20.0] * ITEMS)
    assert [item.id for item in last.items] == [item.id for item in written.items]
    assert {score.name for score in last.scores} == {"rougeL", "response_perplexity"}
    assert len(last.scores[0].statistics) == ITEMS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no scores.json"),
        ("{", "cannot be read"),
        ('{"stages": [{}]}', "not a valid list of scores"),
        ("[]", "object"),
    ],
)
def test_folder_without_finished_run_is_rejected(tmp_path: Path, content: str | None, message: str) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(HarnessError) as caught:
        finished_run.load_finished_run(tmp_path)
    assert message in str(caught.value)


def test_runs_without_common_items_are_reported(tmp_path: Path) -> None:
    """Arms with other seeds have other held-out rows; small data may have none in common."""
    runs = {
        "naive": write_finished_run(tmp_path / "naive", 0.3, 1.0),
        "other": write_finished_run(tmp_path / "other", 0.2, 1.0),
    }
    runs["other"] = with_changed_evaluations(
        runs["other"], lambda one: replace(one, items=tuple(replace(item, id=f"other {item.id}") for item in one.items))
    )
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "general/response_perplexity"}
    one = arm_comparison.compare_arms(
        "sweep", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(**axes), seed=0
    )
    assert [two.arm for two in one.scores] == ["naive"] * 4
    assert len(one.points) == 2
    assert len(one.notes) == 2
    assert "it has no common item with the baseline 'naive', e.g. other held-out rows" in one.notes[0]


def test_joint_arm_of_one_stage_has_no_summary(tmp_path: Path, monkeypatch) -> None:
    runs = {
        "seq": write_finished_run(tmp_path / "seq", 0.3, 1.0),
        "all": write_finished_run(tmp_path / "all", 0.3, 1.0),
    }
    for run in runs.values():
        (run.folder / "report.json").write_text(json.dumps({"forgetting": []}))
    summary = ScoreForGate(Estimate(0.1, 0.01, 0.08, 0.12, 60), None, True)
    scores_by_folder = {runs["seq"].folder: {"forgetting:rougeL": summary}, runs["all"].folder: {}}
    monkeypatch.setattr(arm_experiment, "gate_scores_of_run", scores_by_folder.__getitem__)
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "forgetting:rougeL"}
    one = arm_comparison.compare_arms(
        "sweep", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(joint="all", **axes), seed=0
    )
    assert math.isnan(one.points[1].forgotten.value)
    assert one.to_json()["points"][1]["forgotten"]["value"] is None
    with pytest.raises(HarnessError, match="the run has no summary 'forgetting:rougeL'"):
        arm_comparison.compare_arms(
            "sweep", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(**axes), seed=0
        )


def with_changed_evaluations(run: finished_run.FinishedRun, change) -> finished_run.FinishedRun:
    """Return the run with each evaluation changed; None removes it."""
    stages = (tuple(new for one in stage if (new := change(one)) is not None) for stage in run.evaluations)
    return replace(run, evaluations=tuple(stages))


def without(score: str):
    return lambda one: replace(one, scores=tuple(some for some in one.scores if some.name != score))


def with_other_signature(one):
    scores = (replace(some, signature="mean|of:another") if some.name == "rougeL" else some for some in one.scores)
    return replace(one, scores=tuple(scores))


@pytest.mark.slow
def test_scores_with_other_signatures_are_noted_and_the_rest_is_compared(tmp_path: Path) -> None:
    """The mismatch is result after all arms have run, so it must not prevent their comparison."""
    whole = {name: write_finished_run(tmp_path / name, 0.3, 1.0) for name in ("naive", "blind", "poor", "other")}
    runs = {
        "naive": whole["naive"],
        "poor": with_changed_evaluations(whole["poor"], without("response_perplexity")),
        "other": with_changed_evaluations(
            whole["other"], lambda one: with_other_signature(one) if one.suite == "general" else one
        ),
        "blind": with_changed_evaluations(whole["blind"], lambda one: None if one.suite == "general" else one),
    }

    def compare(base: str) -> arm_comparison.ArmComparison:
        axis = "helpdesk/rougeL"
        return arm_comparison.compare_arms(
            "sweep",
            tmp_path,
            runs,
            example_run.BY_SUITE,
            arm_comparison.ComparisonSettings(baseline=base, gain_score=axis, forgetting_score=axis),
            seed=0,
        )

    one = compare("naive")
    assert one.notes == (
        "helpdesk/response_perplexity is not compared for 'poor': not measured there",
        "general/response_perplexity is not compared for 'poor': not measured there",
        "general/rougeL is not compared for 'other': the baseline 'naive' "
        "measured it with another signature (mean|of:test)",
        "the suite 'general' is not compared for 'blind': not measured there",
    )
    assert [(two.suite, two.score) for two in one.scores if two.arm == "other"] == [
        ("helpdesk", "rougeL"),
        ("helpdesk", "response_perplexity"),
        ("general", "response_perplexity"),
    ]
    assert json.loads(json.dumps(one.to_json()))["notes"] == list(one.notes)
    stream = io.StringIO()
    Console(file=stream, width=200, color_system=None).print(format_arms(one))
    assert "the suite 'general' is not compared for 'blind': not measured there" in stream.getvalue()
    note = "the suite 'general' is not compared for 'naive', 'poor', 'other': the baseline 'blind' did not measure it"
    assert note in compare("blind").notes


def test_arm_with_other_signature_of_an_axis_is_excluded(tmp_path: Path) -> None:
    """E.g. after the library of a metric was updated before the experiment was resumed."""
    whole = {
        name: write_finished_run(tmp_path / name, 0.3, rise)
        for name, rise in (("naive", 5.0), ("kept", 1.0), ("other", 0.1))
    }
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "general/response_perplexity"}
    assert (
        arm_comparison.compare_arms(
            "sweep", tmp_path, whole, example_run.BY_SUITE, arm_comparison.ComparisonSettings(**axes), seed=0
        ).advised.arm
        == "other"
    )
    runs = {**whole, "other": with_changed_evaluations(whole["other"], with_other_signature)}
    result = arm_comparison.compare_arms(
        "sweep", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(**axes), seed=0
    )
    assert result.advised.arm == "kept"
    assert result.advised.note == ("'other' uses other metric options than 'naive' for the compared scores: excluded")
    assert "helpdesk/rougeL is not compared for 'other'" in result.notes[0]
    point = next(one for one in result.points if one.arm == "other")
    assert (point.efficient, point.recovered) == (False, None)
