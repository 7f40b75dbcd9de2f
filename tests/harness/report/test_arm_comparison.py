"""Arms compared: over the same items, against the base and one another, from the files that runs leave."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from support import example_run

from harness.errors import HarnessError
from harness.gate import ScoreForGate
from harness.report import arm_comparison, finished_run, recommendation, run_report
from harness.report.recommendation import ArmPoint
from harness.report.spec_diff import SweptParameter
from harness.statistics.intervals import Estimate
from harness.terminal.arms_table import format_arms
from harness.utils.formatting import format_p_value
from harness.utils.json_files import write_scores

SPEC = {"evaluate": {"helpdesk": {"role": "domain"}, "general": {"role": "general"}}}
ITEMS = 60


def finished(
    folder: Path, gain: float, rise: float, noise: float = 0.02, mixing: float | None = None
) -> finished_run.FinishedRun:
    """A run on disk whose ROUGE-L on the help desk gains `gain` and whose general NLL rises by `rise` nats an item."""
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
        "naive": finished(tmp_path / "naive", 0.3, 5.0),
        "mixing": finished(tmp_path / "mixing", 0.29, 0.5),
        "frozen": finished(tmp_path / "frozen", 0.0, 0.0),
        "worse": finished(tmp_path / "worse", 0.2, 6.0),
    }
    return arm_comparison.compare_arms(
        "sweep",
        tmp_path,
        runs,
        example_run.BY_SUITE,
        seed=0,
        gain_score="helpdesk/rougeL",
        forgetting_score="general/response_perplexity",
        missing={"ewc": "interrupted"},
    )


def find(experiment: arm_comparison.ArmComparison, arm: str, score: str) -> arm_comparison.ArmScore:
    return next(one for one in experiment.scores if (one.arm, f"{one.suite}/{one.score}") == (arm, score))


def test_an_arm_is_compared_with_the_baseline_over_the_same_items(experiment: arm_comparison.ArmComparison) -> None:
    rouge = find(experiment, "mixing", "helpdesk/rougeL")
    assert rouge.n == ITEMS
    assert rouge.change.value == pytest.approx(0.29, abs=0.001)
    assert rouge.against is not None
    assert rouge.against.value == pytest.approx(-0.01)
    assert find(experiment, "naive", "helpdesk/rougeL").against is None
    perplexity = find(experiment, "mixing", "general/response_perplexity")
    assert perplexity.verdict == "better", "the perplexity rose less than the baseline's"
    assert find(experiment, "worse", "general/response_perplexity").verdict == "worse"


def test_p_values_are_adjusted_for_every_comparison_of_the_experiment(experiment: arm_comparison.ArmComparison) -> None:
    tested = [one for one in experiment.scores if one.p is not None]
    assert len(tested) == 3 * 4
    assert all(one.p_holm >= one.p for one in tested)
    smallest = min(tested, key=lambda one: one.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 12 * smallest.p))


def test_points_say_gain_and_forgetting_with_the_sign_that_people_mean(
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


def test_the_advice_weighs_gain_before_forgetting_and_says_what_cannot_be_told_apart() -> None:
    def estimate(value: float, half: float) -> Estimate:
        return Estimate(value, half / 2, value - half, value + half, 50)

    points = [
        ArmPoint("naive", estimate(0.30, 0.05), estimate(0.50, 0.1), None, True),
        ArmPoint("small", estimate(0.29, 0.05), estimate(0.10, 0.1), 0.8, True),
        ArmPoint("large", estimate(0.28, 0.05), estimate(0.05, 0.1), 0.9, True),
        ArmPoint("frozen", estimate(0.00, 0.01), estimate(0.00, 0.01), 1.0, True),
    ]
    advice = recommendation.recommend(points, "a/b", "c/d").full_text
    assert "'large' forgets least" in advice
    assert "no evidence of forgetting" in advice
    assert "small cannot be told from it" in advice
    assert "frozen" not in advice
    assert "none can be recommended" in recommendation.recommend(points[3:], "a/b", "c/d").full_text


def test_nothing_is_advised_from_few_items_or_from_what_is_no_number() -> None:
    gain, nothing = Estimate(0.3, 0.02, 0.26, 0.34, 50), Estimate(math.nan, math.nan, math.nan, math.nan, 50)
    few = Estimate(0.3, 0.02, 0.26, 0.34, 29)
    told = recommendation.recommend([ArmPoint("a", few, few, None, True)], "a/b", "c/d").full_text
    assert told == "a/b has fewer than 30 items, which is too few to recommend an arm"
    told = recommendation.recommend(
        [ArmPoint("a", gain, nothing, None, True), ArmPoint("b", gain, gain, None, True)], "a/b", "c/d"
    ).full_text
    assert "'b' forgets least" in told
    assert (
        "none can be recommended"
        in recommendation.recommend([ArmPoint("a", gain, nothing, None, True)], "a/b", "c/d").full_text
    )
    assert (
        "over n = 29, too few items to tell"
        in recommendation.recommend([ArmPoint("a", gain, few, None, True)], "a/b", "c/d").full_text
    )


def test_a_change_is_that_of_the_run_s_own_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One number has one interval, in closed form where there is one."""
    monkeypatch.setattr(type(example_run.METRICS["rouge"]), "is_ratio", lambda self, name: True)
    run = finished(tmp_path / "naive", 0.3, 5.0)
    own = run_report.build_report(
        example_run.made_plan(), list(run.evaluations), example_run.BY_SUITE, seed=0, run_info={}
    )
    change = next(one.difference for one in own.changes if (one.suite, one.name) == ("helpdesk", "rougeL"))
    made = arm_comparison.compare_arms(
        "sweep", tmp_path, {"naive": run}, example_run.BY_SUITE, seed=0, gain_score="helpdesk/rougeL"
    )
    assert find(made, "naive", "helpdesk/rougeL").change == made.points[0].gain == change
    assert change.method == "t"


def swept_points(**losses: tuple[float, float]) -> list[ArmPoint]:
    """Arms that gain alike; name -> (forgotten, half its interval)."""
    gain = Estimate(0.3, 0.02, 0.26, 0.34, 50)
    return [
        ArmPoint(arm, gain, Estimate(loss, half / 1.96, loss - half, loss + half, 50), None, True)
        for arm, (loss, half) in losses.items()
    ]


SHARES = SweptParameter(
    "mitigations.mixing.share", {"a": 0.0, "b": 0.01, "c": 0.05, "d": 0.1, "e": 0.25}, is_share=True
)


def test_a_p_value_is_never_shown_as_0() -> None:
    assert [format_p_value(p) for p in (0.0001, 0.001, 0.25, math.nan, None)] == ["<0.001", "0.001", "0.250", "–", "–"]


def test_of_what_was_swept_the_smallest_value_that_cannot_be_told_from_the_best_is_named() -> None:
    points = swept_points(a=(0.5, 0.05), b=(0.4, 0.05), c=(0.12, 0.05), d=(0.08, 0.05), e=(0.1, 0.05))
    told = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES).full_text
    assert "The smallest that cannot be told from the least forgetting in chat/nll is " in told
    assert "mitigations.mixing.share of 5 %: it forgets 0.0400 [−0.0307, +0.111] more than 10 %" in told
    assert told.endswith("That rests on one training run a value; the intervals are over the items alone")


def test_over_the_same_items_less_is_needed_to_tell_two_values_apart() -> None:
    points = swept_points(a=(0.5, 0.05), b=(0.4, 0.05), c=(0.12, 0.05), d=(0.08, 0.05), e=(0.1, 0.05))

    def paired(one: ArmPoint, other: ArmPoint) -> Estimate:
        gap = one.forgotten.value - other.forgotten.value
        return Estimate(gap, 0.005, gap - 0.01, gap + 0.01, 50)

    told = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES, forgetting_difference=paired).full_text
    assert "share of 10 % is where chat/nll suffers least; every smaller one that gains as much forgets more" in told


def test_no_general_data_may_be_enough_and_a_value_needs_all_its_seeds() -> None:
    points = swept_points(a=(0.1, 0.05), b=(0.2, 0.05))
    assert (
        "share of 0 % is where chat/nll suffers least; and none is smaller"
        in recommendation.recommend(points, "desk/nll", "chat/nll", SHARES).full_text
    )
    idle = ArmPoint("a", Estimate(0.01, 0.01, -0.01, 0.03, 50), Estimate(0.9, 0.01, 0.88, 0.92, 50), None, True)
    told = recommendation.recommend(
        [idle, *swept_points(b=(0.1, 0.05), c=(0.5, 0.05))], "desk/nll", "chat/nll", SHARES
    ).full_text
    assert "share of 1 % is where chat/nll suffers least; no smaller one gains as much" in told
    seeds = SweptParameter("train.learning_rate", {"a": 1e-5, "b": 1e-5, "c": 3e-5, "d": 3e-5}, is_share=False)
    points = swept_points(a=(0.1, 0.05), b=(0.9, 0.05), c=(0.05, 0.05), d=(0.06, 0.05))
    told = recommendation.recommend(points, "desk/nll", "chat/nll", seeds).full_text
    assert "train.learning_rate of 3e-05 is where" in told
    assert "rests on 2 training runs a value" in told


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ({"a": -0.17, "c": -0.21, "e": -0.37}, "it ends best with 25 %, beyond doubt better than with less"),
        ({"a": -0.17, "d": -0.36, "e": -0.37}, "it ends best with 25 %, from which 10 % cannot be told"),
        ({"a": -0.36, "d": -0.35, "e": -0.37}, "and no other ends beyond doubt better"),
    ],
)
def test_where_nothing_is_forgotten_no_more_of_it_is_called_needed(losses, ends) -> None:
    points = swept_points(**{arm: (value, 0.03) for arm, value in losses.items()})
    found = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES)
    assert found.value == 0.0
    assert found.headline == "no arm that gains about as much as the best forgets in chat/nll; 'e' ends best in it"
    begin = "Nothing is forgotten in chat/nll with any mitigations.mixing.share: it got better even with 0 %"
    assert found.enough.startswith(begin)
    assert found.enough.endswith(ends)
    one = [points[0], *swept_points(d=(0.01, 0.03))]
    assert "forgets least" in recommendation.recommend(one, "desk/nll", "chat/nll", SHARES).headline


def test_no_value_is_enough_where_the_seeds_of_the_best_one_can_be_told_apart() -> None:
    """Two seeds of one value often can, over the same items: no advice ends in a traceback, or names a value."""
    seeds = SweptParameter("train.learning_rate", {"a": 1e-5, "b": 1e-5, "c": 3e-5, "d": 3e-5}, is_share=False)
    points = swept_points(a=(0.1, 0.01), b=(0.9, 0.05), c=(0.7, 0.05), d=(0.8, 0.05))
    found = recommendation.recommend(points, "desk/nll", "chat/nll", seeds)
    assert (found.arm, found.value) == ("a", None)
    assert found.enough == (
        "No train.learning_rate is enough for certain: at every value some training run forgets more in chat/nll "
        "beyond doubt than 'a', which forgets least, at 1e-05"
    )
    points = swept_points(a=(0.06, 0.05), b=(0.9, 0.05), c=(0.05, 0.05), d=(0.06, 0.05))
    told = recommendation.recommend(points, "desk/nll", "chat/nll", seeds).enough
    assert told.endswith("every smaller one that gains as much has a training run that forgets more beyond doubt")


def test_an_arm_that_gains_too_little_is_no_value_to_choose() -> None:
    points = swept_points(b=(0.2, 0.05), c=(0.1, 0.02))
    idle = ArmPoint("a", Estimate(0.01, 0.01, -0.01, 0.03, 50), Estimate(0.0, 0.001, 0.0, 0.0, 50), None, True)
    told = recommendation.recommend([idle, *points], "desk/nll", "chat/nll", SHARES).full_text
    assert "share of 5 %" in told
    assert "0 %" not in told


def test_arms_that_cannot_be_told_from_the_best_are_found_by_the_same_items() -> None:
    points = swept_points(b=(0.12, 0.05), d=(0.08, 0.05))

    def paired(one: ArmPoint, other: ArmPoint) -> Estimate:
        gap = one.forgotten.value - other.forgotten.value
        return Estimate(gap, 0.005, gap - 0.01, gap + 0.01, 50)

    assert recommendation.recommend(points, "desk/nll", "chat/nll").alike == ("b",)
    found = recommendation.recommend(points, "desk/nll", "chat/nll", forgetting_difference=paired)
    assert (found.arm, found.alike, found.indistinguishable_clause) == ("d", (), "")


def test_an_arm_without_a_value_may_be_advised_and_the_values_are_still_weighed() -> None:
    points = swept_points(naive=(0.04, 0.01), a=(0.5, 0.05), c=(0.1, 0.05))
    values = SweptParameter("mitigations.ewc.strength", {"a": 1.0, "c": 10.0}, is_share=False)
    found = recommendation.recommend(points, "desk/nll", "chat/nll", values)
    assert (found.arm, found.value) == ("naive", 10.0)
    assert found.enough.startswith("mitigations.ewc.strength of 10 is where")
    alone = recommendation.recommend(points[:1], "desk/nll", "chat/nll", values)
    assert (alone.arm, alone.value, alone.enough) == ("naive", None, "")


def test_the_advice_is_told_in_sentences_with_what_to_know_before_it() -> None:
    points = swept_points(a=(0.5, 0.05), c=(0.12, 0.05), d=(0.08, 0.05))
    found = recommendation.recommend(points, "desk/nll", "chat/nll", SHARES, note="the baseline 'x' has no result yet")
    assert (found.arm, found.value, found.alike) == ("d", 0.05, ("c",))
    assert found.full_text == (
        "the baseline 'x' has no result yet; of the arms that gain about as much as the best, 'd' forgets least in "
        f"chat/nll (it forgets 0.08 [0.03, 0.13]); c cannot be told from it. {found.enough}. {found.rests}"
    )


def test_arms_that_differ_in_one_number_are_advised_over_it_by_paired_items(tmp_path: Path) -> None:
    runs = {
        f"share={share}": finished(tmp_path / str(share), 0.3, rise, mixing=share)
        for share, rise in ((0.0, 5.0), (0.05, 0.51), (0.25, 0.5))
    }
    made = arm_comparison.compare_arms(
        "sweep",
        tmp_path,
        runs,
        example_run.BY_SUITE,
        seed=0,
        gain_score="helpdesk/rougeL",
        forgetting_score="general/response_perplexity",
    )
    assert "mitigations.mixing.share of 25 % is where" in made.recommendation_text
    assert "every smaller one that gains as much forgets more beyond doubt" in made.recommendation_text


def test_forgetting_may_be_a_summary_of_each_run_s_matrix_with_its_sign(tmp_path: Path) -> None:
    runs = {name: finished(tmp_path / name, 0.3, 5.0) for name in ("naive", "ewc")}
    lost = {"naive": 0.6, "ewc": -0.1}
    for name, run in runs.items():
        given = {"value": lost[name], "stderr": 0.05, "low": lost[name] - 0.1, "high": lost[name] + 0.2, "n": 40}
        summaries = {
            "forgetting": {**given, "method": "bootstrap"},
            "backward_transfer": {**given, "value": -0.6, "low": -0.8, "high": -0.5, "method": "bootstrap"},
            "average_accuracy": {**given, "method": "bootstrap"},
        }
        document = {"changes": [], "forgetting": [{"score": "response_nll", "summaries": summaries}]}
        (run.folder / "report.json").write_text(json.dumps(document))

    def make(axis: str) -> arm_comparison.ArmComparison:
        return arm_comparison.compare_arms(
            "one", tmp_path, runs, example_run.BY_SUITE, seed=0, gain_score="helpdesk/rougeL", forgetting_score=axis
        )

    made = make("forgetting:response_nll")
    assert made.forgetting == "forgetting:response_nll"
    assert [one.forgotten.value for one in made.points] == [0.6, -0.1]
    assert (made.points[0].forgotten.low, made.points[0].forgotten.high) == (0.5, pytest.approx(0.8))
    assert made.points[1].recovered == pytest.approx(1 + 0.1 / 0.6)
    turned = make("backward_transfer:response_nll").points[0].forgotten
    assert (turned.value, turned.low, turned.high) == (0.6, 0.5, 0.8)
    with pytest.raises(HarnessError, match=r"no summary 'forgetting:bleu'.*forgetting:response_nll"):
        make("forgetting:bleu")
    with pytest.raises(HarnessError, match="no summary 'average_accuracy:response_nll'"):
        make("average_accuracy:response_nll")


def test_the_axes_are_chosen_by_role_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    runs = {"naive": finished(tmp_path / "naive", 0.3, 5.0)}
    made = arm_comparison.compare_arms("one", tmp_path, runs, example_run.BY_SUITE, seed=0)
    assert (made.gain, made.forgetting) == ("helpdesk/rougeL", "general/rougeL")
    with pytest.raises(HarnessError, match=r"no suite has the score 'helpdesk/blue'.*helpdesk/rougeL"):
        arm_comparison.compare_arms("one", tmp_path, runs, example_run.BY_SUITE, seed=0, gain_score="helpdesk/blue")
    with pytest.raises(HarnessError, match="no arm has a result"):
        arm_comparison.compare_arms("none", tmp_path, {}, example_run.BY_SUITE, seed=0)


def test_a_baseline_without_a_result_is_said_and_another_taken(tmp_path: Path) -> None:
    runs = {"mixing": finished(tmp_path / "mixing", 0.3, 1.0)}
    made = arm_comparison.compare_arms("one", tmp_path, runs, example_run.BY_SUITE, seed=0, baseline="naive")
    assert made.baseline == "mixing"
    assert made.recommendation_text.startswith("the baseline 'naive' has no result yet")


def test_the_experiment_is_shown_and_kept(experiment: arm_comparison.ArmComparison, tmp_path: Path) -> None:
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


def test_a_run_read_back_has_the_scores_that_were_written(tmp_path: Path) -> None:
    run = finished(tmp_path / "one", 0.3, 5.0)
    assert run.stages == ("base", "mixed")
    last = run.last_evaluation("helpdesk")
    assert last is not None
    written = example_run.made_evaluation(1, "helpdesk", [0.6] * ITEMS, [20.0] * ITEMS)
    assert [item.id for item in last.items] == [item.id for item in written.items]
    assert {score.name for score in last.scores} == {"rougeL", "response_perplexity"}
    assert len(last.scores[0].statistics) == ITEMS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "holds no scores.json"),
        ("{", "cannot be read"),
        ('{"stages": [{}]}', "no list of scores"),
        ("[]", "object"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_named(tmp_path: Path, content: str | None, told: str) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    with pytest.raises(HarnessError) as caught:
        finished_run.load_finished_run(tmp_path)
    assert told in str(caught.value)


def test_runs_that_share_no_item_are_told_and_their_points_stand(tmp_path: Path) -> None:
    """Arms of other seeds have other held-out rows, in small data none in common."""
    runs = {"naive": finished(tmp_path / "naive", 0.3, 1.0), "other": finished(tmp_path / "other", 0.2, 1.0)}
    runs["other"] = changed(
        runs["other"], lambda one: replace(one, items=tuple(replace(item, id=f"other {item.id}") for item in one.items))
    )
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "general/response_perplexity"}
    one = arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, **axes)
    assert [two.arm for two in one.scores] == ["naive"] * 4
    assert len(one.points) == 2
    assert len(one.notes) == 2
    assert "it shares no item with the baseline 'naive', as with other held-out rows" in one.notes[0]


def test_a_joint_arm_of_one_stage_has_no_summary_over_stages_and_is_shown_without(tmp_path: Path, monkeypatch) -> None:
    runs = {"seq": finished(tmp_path / "seq", 0.3, 1.0), "all": finished(tmp_path / "all", 0.3, 1.0)}
    for run in runs.values():
        (run.folder / "report.json").write_text(json.dumps({"forgetting": []}))
    summary = ScoreForGate(Estimate(0.1, 0.01, 0.08, 0.12, 60), None, True)
    told = {runs["seq"].folder: {"forgetting:rougeL": summary}, runs["all"].folder: {}}
    monkeypatch.setattr(arm_comparison, "gate_scores_of_run", told.__getitem__)
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "forgetting:rougeL"}
    one = arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, joint="all", **axes)
    assert math.isnan(one.points[1].forgotten.value)
    assert one.to_json()["points"][1]["forgotten"]["value"] is None
    with pytest.raises(HarnessError, match="the run has no summary 'forgetting:rougeL'"):
        arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, **axes)


def changed(run: finished_run.FinishedRun, change) -> finished_run.FinishedRun:
    """The run with its evaluations changed, one by one; None takes one out."""
    stages = (tuple(new for one in stage if (new := change(one)) is not None) for stage in run.evaluations)
    return replace(run, evaluations=tuple(stages))


def without(score: str):
    return lambda one: replace(one, scores=tuple(some for some in one.scores if some.name != score))


def measured_otherwise(one):
    scores = (replace(some, signature="mean|of:another") if some.name == "rougeL" else some for some in one.scores)
    return replace(one, scores=tuple(scores))


def test_what_only_some_arms_measured_alike_is_named_and_costs_nothing_else(tmp_path: Path) -> None:
    """It is found when all arms have run: it must not cost their comparison."""
    whole = {name: finished(tmp_path / name, 0.3, 1.0) for name in ("naive", "blind", "poor", "other")}
    runs = {
        "naive": whole["naive"],
        "poor": changed(whole["poor"], without("response_perplexity")),
        "other": changed(whole["other"], lambda one: measured_otherwise(one) if one.suite == "general" else one),
        "blind": changed(whole["blind"], lambda one: None if one.suite == "general" else one),
    }

    def made(base: str) -> arm_comparison.ArmComparison:
        axis = "helpdesk/rougeL"
        return arm_comparison.compare_arms(
            "sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, baseline=base, gain_score=axis, forgetting_score=axis
        )

    one = made("naive")
    assert one.notes == (
        "helpdesk/response_perplexity is not compared for 'poor': not measured there",
        "general/response_perplexity is not compared for 'poor': not measured there",
        "general/rougeL is not compared for 'other': the baseline 'naive' measured it otherwise (mean|of:test)",
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
    told = "the suite 'general' is not compared for 'naive', 'poor', 'other': the baseline 'blind' did not measure it"
    assert told in made("blind").notes


def test_an_arm_that_measured_otherwise_what_arms_are_compared_by_is_not_weighed(tmp_path: Path) -> None:
    """As an arm of another version of a metric's library, after which the run was gone on with."""
    whole = {
        name: finished(tmp_path / name, 0.3, rise) for name, rise in (("naive", 5.0), ("kept", 1.0), ("other", 0.1))
    }
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "general/response_perplexity"}
    assert (
        arm_comparison.compare_arms("sweep", tmp_path, whole, example_run.BY_SUITE, seed=0, **axes).advised.arm
        == "other"
    )
    runs = {**whole, "other": changed(whole["other"], measured_otherwise)}
    found = arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, **axes)
    assert found.advised.arm == "kept"
    assert found.advised.note == (
        "'other' was measured otherwise than 'naive' in what arms are compared by, and is not weighed"
    )
    assert "helpdesk/rougeL is not compared for 'other'" in found.notes[0]
    point = next(one for one in found.points if one.arm == "other")
    assert (point.efficient, point.recovered) == (False, None)
