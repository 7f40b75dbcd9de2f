"""The report of a run, and how the terminal displays it."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from support import example_run

from harness import gate
from harness.report import run_report, score_change
from harness.statistics.intervals import Estimate
from harness.terminal.report_table import format_report


@pytest.fixture
def run_parts():
    """Return the parts of a run that is written by hand."""
    return SimpleNamespace(
        plan=example_run.made_plan,
        evaluation=example_run.made_evaluation,
        evaluations=example_run.made_evaluations,
        report=example_run.made_report,
        metrics=example_run.BY_SUITE,
    )


def displayed(report, width=100, **options):
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, **{"color_system": None, **options})
    console.print(format_report(report), crop=False)
    return stream.getvalue()


def with_answers(run_parts, answers):
    """Return a report with these answers after training."""
    first, last = run_parts.evaluations()
    items = tuple(replace(item, answer=text) for item, text in zip(last[0].items, answers, strict=False))
    cut = [replace(stage[0], items=stage[0].items[: len(items)]) for stage in (first, last)]
    stages = [(cut[0], first[1]), (replace(cut[1], items=items), last[1])]
    return run_report.build_report(run_parts.plan(), stages, run_parts.metrics, seed=0, run_info={})


@pytest.fixture
def two_stages(run_parts, tmp_path):
    return run_parts.report(tmp_path / "mixed-sft-1", stages=2, uri="sqlite:///mlflow.db")


def find_change(report, suite, name):
    return next(one for one in report.changes if (one.suite, one.name) == (suite, name))


def test_values_and_differences_follow_from_statistics(two_stages):
    rouge = find_change(two_stages, "helpdesk", "rougeL")
    assert rouge.before.value == pytest.approx(0.22)
    assert rouge.after.value == pytest.approx(0.62)
    assert rouge.difference.value == pytest.approx(0.4)
    # Every item gains the same, so a paired interval has no width; an unpaired one would.
    assert rouge.difference.low == pytest.approx(0.4)
    assert rouge.difference.high == pytest.approx(0.4)
    perplexity = find_change(two_stages, "helpdesk", "response_perplexity")
    nats = sum(30.0 + i % 3 for i in range(40))
    assert perplexity.before.value == pytest.approx(math.exp(nats / 400))
    assert perplexity.difference.value == pytest.approx(math.exp(nats / 400 - 2.0) - math.exp(nats / 400))
    assert perplexity.n == 40


def test_interval_of_mean_equals_closed_form(run_parts):
    before, after = run_parts.evaluations(items=200)
    changed = [0.1 if i % 4 == 0 else 0.0 for i in range(200)]
    after = (run_parts.evaluation(1, "helpdesk", [0.2 + c for c in changed], [20.0] * 200), after[1])
    before = (run_parts.evaluation(0, "helpdesk", [0.2] * 200, [20.0] * 200), before[1])
    rouge = find_change(
        run_report.build_report(run_parts.plan(), [before, after], run_parts.metrics, seed=0, run_info={}),
        "helpdesk",
        "rougeL",
    )
    mean = sum(changed) / 200
    stderr = math.sqrt(sum((c - mean) ** 2 for c in changed) / 200 / 200)
    assert rouge.difference.stderr == pytest.approx(stderr, rel=0.1)
    assert rouge.difference.low == pytest.approx(mean - 1.96 * stderr, abs=0.3 * stderr)


def test_decrease_is_better_if_lower_is_better(two_stages):
    assert find_change(two_stages, "helpdesk", "rougeL").verdict == "better"
    assert find_change(two_stages, "helpdesk", "response_perplexity").verdict == "better"
    text = displayed(two_stages)
    assert "▲ better" in next(line for line in text.splitlines() if "rougeL" in line)
    assert "▼ better" in next(line for line in text.splitlines() if "response_perplexity" in line)


def test_increase_is_worse_if_lower_is_better(run_parts):
    first, last = run_parts.evaluations()
    backwards = run_report.build_report(run_parts.plan(), [last, first], run_parts.metrics, seed=0, run_info={})
    assert find_change(backwards, "helpdesk", "rougeL").verdict == "worse"
    assert find_change(backwards, "helpdesk", "response_perplexity").verdict == "worse"
    assert "▲ worse" in next(line for line in displayed(backwards).splitlines() if "response_perplexity" in line)


def test_interval_with_zero_is_no_evidence(two_stages):
    rouge = find_change(two_stages, "general", "rougeL")
    assert rouge.difference.low < 0 < rouge.difference.high
    assert rouge.verdict == "no evidence"


def test_nan_interval_is_no_evidence(run_parts):
    stages = [(run_parts.evaluation(stage, "helpdesk", [0.1 + stage], [20.0]),) for stage in (0, 1)]
    single = run_report.build_report(run_parts.plan(), stages, run_parts.metrics, seed=0, run_info={})
    assert {one.verdict for one in single.changes} == {"too few items"}
    undefined = Estimate(0.5, math.nan, math.nan, math.nan, 50)
    assert score_change.verdict_of_difference(undefined, True) == "no evidence"
    assert single.to_json()["changes"][0]["difference"]["low"] is None
    assert "–" in displayed(single)


def test_matrix_has_every_stage_and_gaps(run_parts):
    stages = run_parts.evaluations(stages=2)
    stages[1] = stages[1][:1]
    matrix = run_report.build_report(run_parts.plan(2), stages, run_parts.metrics, seed=0, run_info={}).scores_by_stage
    assert matrix["helpdesk"]["rougeL"] == pytest.approx([0.22, 0.42, 0.62])
    assert matrix["general"]["rougeL"] == [pytest.approx(0.5), None, pytest.approx(0.5)]


def test_stages_with_different_items_are_not_compared(run_parts):
    first, last = run_parts.evaluations()
    moved = replace(last[0], items=last[0].items[1:] + last[0].items[:1])
    with pytest.raises(ValueError, match="the stages have different items"):
        run_report.build_report(run_parts.plan(), [first, (moved, last[1])], run_parts.metrics, seed=0, run_info={})


def test_base_model_alone_is_rejected(run_parts):
    with pytest.raises(ValueError, match="at least one stage"):
        run_report.build_report(
            run_parts.plan(), run_parts.evaluations(stages=0), run_parts.metrics, seed=0, run_info={}
        )


def test_three_domain_examples_are_drawn_by_seed(run_parts):
    def draw_examples(seed, evaluations):
        return run_report.build_report(
            run_parts.plan(), evaluations, run_parts.metrics, seed=seed, run_info={}
        ).examples

    evaluations = run_parts.evaluations()
    examples = draw_examples(0, evaluations)
    assert len(examples) == 3
    assert {one.suite for one in examples} == {"helpdesk"}
    assert all(one.before.startswith("stage 0 says") and one.after.startswith("stage 1 says") for one in examples)
    assert examples == draw_examples(0, evaluations)
    assert len({tuple(one.id for one in draw_examples(seed, evaluations)) for seed in range(5)}) > 1
    worse = [evaluations[0], (run_parts.evaluation(1, "helpdesk", [0.0] * 40, [90.0] * 40), evaluations[1][1])]
    assert [one.id for one in draw_examples(0, worse)] == [one.id for one in examples]


def test_examples_come_from_the_first_suite_with_answers(run_parts):
    silent = [
        (replace(stage[0], items=tuple(replace(item, answer=None, finish=None) for item in stage[0].items)), stage[1])
        for stage in run_parts.evaluations()
    ]
    assert {
        one.suite
        for one in run_report.build_report(run_parts.plan(), silent, run_parts.metrics, seed=0, run_info={}).examples
    } == {"general"}


def test_files_have_every_score_and_its_statistics(two_stages, tmp_path):
    two_stages.write(tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text())["stages"]
    assert [stage["name"] for stage in scores] == ["base", "stage-1", "stage-2"]
    helpdesk = scores[2]["suites"]["helpdesk"]
    assert helpdesk["items"][:2] == ["id0", "id1"]
    rouge = helpdesk["scores"][0]
    assert rouge["signature"] == "mean|of:test"
    assert len(rouge["statistics"]) == len(helpdesk["items"]) == 40
    assert sum(one[0] for one in rouge["statistics"]) / 40 == pytest.approx(rouge["value"])
    run_parts = json.loads((tmp_path / "report.json").read_text())
    assert run_parts == two_stages.to_json()
    assert run_parts["run"] == {"id": "mixed-sft-1", "folder": str(tmp_path / "mixed-sft-1"), "seconds": 187.0,
                           "uri": "sqlite:///mlflow.db"}  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "scores.json"]


def test_files_are_valid_json(run_parts, tmp_path):
    first, last = run_parts.evaluations()
    scores = tuple(replace(score, stderr=math.nan, high=math.inf) for score in last[0].scores)
    items = tuple(replace(item, answer="half a pair \ud83d") for item in last[0].items)
    stages = [first, (replace(last[0], scores=scores, items=items), last[1])]
    run_report.build_report(run_parts.plan(), stages, run_parts.metrics, seed=0, run_info={}).write(tmp_path)
    for name in ("scores.json", "report.json"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    written = json.loads((tmp_path / "scores.json").read_text())["stages"][1]["suites"]["helpdesk"]["scores"][0]
    assert written["stderr"] is None
    assert written["high"] is None


def test_failed_write_keeps_the_old_file(two_stages, tmp_path, monkeypatch):
    two_stages.write(tmp_path)
    before = (tmp_path / "report.json").read_text()

    def full(self, *arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="no space"):
        two_stages.write(tmp_path)
    assert (tmp_path / "report.json").read_text() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "scores.json"]


HOSTILE = [
    "[red]x[/red] [/] [link=http://a]b[/link]",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "abc\u202edcba\u2066 \x00 \ud800 \x7f\rX",
]


def test_hostile_answers_are_displayed_safely(run_parts):
    text = displayed(with_answers(run_parts, HOSTILE))
    assert "[red]x[/red] [/] [link=http://a]b[/link]" in text
    assert "␛[31mred␛[0m ␛]0;title␇ \\u009b2J" in text
    assert "abc\\u202edcba\\u2066 ␀ \\ud800 ␡␍X" in text
    assert not [character for character in text if ord(character) < 32 and character != "\n"]
    text.encode("utf-8")


def test_long_and_empty_answers_are_marked(run_parts):
    text = displayed(with_answers(run_parts, ["word " * 500, "", "\n".join(f"line {i}" for i in range(30))]))
    assert "… (+2,099 characters)" in text.replace("\n           ", " ")
    assert "(empty)" in text
    assert "… (+22 lines)" in text
    assert "line 9" not in text


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("stages", [1, 5])
def test_numbers_are_complete_at_any_width(run_parts, tmp_path, width, stages):
    report = run_parts.report(tmp_path / "mixed-sft-1", stages=stages, uri="sqlite:///mlflow.db")
    text = displayed(report, width)
    assert max(map(len, text.splitlines())) <= max(width, len(f"run folder  {tmp_path}/mixed-sft-1  (3 min 07 s)"))
    table = text.partition("difference:")[0]
    assert "…" not in table
    assert table.count("▼ better") == 1
    assert "helpdesk" in table
    assert "general" in table
    assert "domain, n = 40" in table
    if stages > 1:
        for stage in ("base", *(f"stage-{k}" for k in range(1, stages + 1))):
            assert stage in text


def test_many_stages_need_a_second_table(run_parts, tmp_path):
    text = displayed(run_parts.report(tmp_path, stages=9), width=80)
    headers = [line for line in text.splitlines() if line.startswith("after stage")]
    assert len(headers) == 2
    assert "stage-9" in headers[1]
    assert "stage-9" not in headers[0]


def test_closing_commands_can_be_copied(run_parts, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / ("long name " * 12)
    text = displayed(run_parts.report(folder, uri="sqlite:///mlflow.db"), width=80)
    assert f"run folder  {folder}  (3 min 07 s)\n" in text
    assert "harness chat" not in text, "there is no model"
    (tmp_path / "b" / "model").mkdir(parents=True)
    text_with_model = displayed(run_parts.report(tmp_path / "b"), width=80)
    assert f"harness chat {tmp_path}/b --compare\n" in text_with_model
    assert f"harness export {tmp_path}/b --to merged\n" in text_with_model
    assert f"harness compare '{folder.name}'\n" in text
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db\n" in text
    text = displayed(run_parts.report(tmp_path / "a", uri="https://track.example"), width=80)
    assert "harness compare a --uri https://track.example\n" in text
    assert "mlflow ui" not in text
    view = "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=harness"
    text = displayed(run_parts.report(tmp_path / "a", uri="sqlite:///mlflow.db", view=view), width=80)
    assert re.search(f"mlflow ui --backend-store-uri sqlite:///mlflow.db *\n +{re.escape(view)}\n", text)
    view = "https://track.example/#/experiments/1/runs?viewStateShareKey=harness"
    text = displayed(run_parts.report(tmp_path / "a", uri="https://track.example", view=view), width=80)
    assert re.search(f"MLflow +{re.escape(view)}\n", text)
    arm = tmp_path / "arms" / "strength=0"
    assert f"harness compare {shlex.quote(str(arm))}\n" in displayed(
        run_parts.report(arm, uri="https://track.example"), width=80
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@track.example")
    assert "harness compare a\n" in displayed(run_parts.report(tmp_path / "a", uri="https://track.example"), width=80)


def test_untracked_run_has_no_tracking_command(run_parts, tmp_path):
    text = displayed(run_parts.report(tmp_path / "a", uri=None))
    assert "mlflow" not in text
    assert "compare" not in text


def test_run_without_suites_is_reported(run_parts, tmp_path):
    empty = run_report.build_report(run_parts.plan(suites=()), [(), ()], {}, seed=0, run_info={"folder": str(tmp_path)})
    empty.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["changes"] == []
    text = displayed(empty)
    assert text.startswith("nothing was evaluated")
    assert str(tmp_path) in text


def test_truncated_answers_are_counted(run_parts):
    first, last = run_parts.evaluations()
    items = tuple(
        replace(item, finish="length" if i < 7 else "empty" if i < 9 else "eos") for i, item in enumerate(last[0].items)
    )
    cut = run_report.build_report(
        run_parts.plan(), [first, (replace(last[0], items=items), last[1])], run_parts.metrics, seed=0, run_info={}
    )
    assert cut.answers["helpdesk"]["after"] == {"empty": 2, "eos": 31, "length": 7}
    assert "after: 7 cut off, 2 empty" in displayed(cut)


def test_stream_without_unicode_gets_ascii(run_parts, tmp_path):
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=100, color_system=None, highlight=False)
    console.print(format_report(run_parts.report(tmp_path / "a", stages=2)))
    console.file.flush()
    text = raw.getvalue().decode("ascii")
    assert "v better" in text
    assert "0.220 -> 0.620" in text


def test_fewer_than_thirty_items_give_no_verdict(run_parts):
    stages = [(run_parts.evaluation(stage, "helpdesk", [0.1 + stage] * 29, [20.0 - stage] * 29),) for stage in (0, 1)]
    few = run_report.build_report(run_parts.plan(), stages, run_parts.metrics, seed=0, run_info={})
    assert {one.verdict for one in few.changes} == {"too few items"}
    assert "too few items" in displayed(few)
    more = [(run_parts.evaluation(stage, "helpdesk", [0.1 + stage] * 30, [20.0 - stage] * 30),) for stage in (0, 1)]
    assert {
        one.verdict
        for one in run_report.build_report(run_parts.plan(), more, run_parts.metrics, seed=0, run_info={}).changes
    } == {"better"}


def test_needed_items_grow_with_squared_uncertainty():
    wide = Estimate(0.1, 0.1, -0.1, 0.3, 100)
    assert score_change.items_needed_for_verdict(wide) == 787, "100 * ((1.96 + 0.84) * 0.1 / 0.1)^2 + 1.96^2 / 2"
    assert score_change.items_needed_for_verdict(Estimate(0.1, 0.2, -0.3, 0.5, 100)) == 3142
    assert score_change.items_needed_for_verdict(Estimate(0.1, 0.01, 0.08, 0.12, 100)) is None, "settled already"
    assert score_change.items_needed_for_verdict(Estimate(0.5, 0.01, 0.4, 0.6, 10)) == 30, (
        "never below what a verdict asks for"
    )
    assert score_change.items_needed_for_verdict(Estimate(0.0, 0.1, -0.2, 0.2, 100)) is None, "no change, no number"


def test_matrix_has_forgetting_with_intervals(run_parts):
    """The first task is learned, then forgotten; its perplexity falls, then rises."""
    items = 40
    rouge = {0: 0.1, 1: 0.8, 2: 0.5}
    nll = {0: 30.0, 1: 10.0, 2: 20.0}
    stages = [
        (
            run_parts.evaluation(k, "helpdesk", [rouge[k] + 0.01 * (i % 3) for i in range(items)], [nll[k]] * items),
            run_parts.evaluation(k, "general", [0.5 + (0.1 if k == 2 else 0.0)] * items, [20.0] * items),
        )
        for k in (0, 1, 2)
    ]
    plan = run_parts.plan(2)
    first, second = plan.stages
    plan = replace(plan, stages=(replace(first, suites=("helpdesk",)), replace(second, suites=("general",))))
    matrices = {
        one.score: one for one in run_report.build_report(plan, stages, run_parts.metrics, seed=0, run_info={}).matrices
    }

    rouge_matrix = matrices["rougeL"]
    assert rouge_matrix.suites == ("helpdesk", "general")
    assert rouge_matrix.learned == (1, 2)
    assert rouge_matrix.general == (False, True)
    lost = rouge_matrix.summaries["forgetting"]
    assert lost.value == pytest.approx(0.3)
    assert lost.n == items, "only the task of the first stage can be forgotten"
    assert rouge_matrix.summaries["forward_transfer"].n == items, "only the task of the second stage"
    assert rouge_matrix.summaries["average_accuracy"].n == 2 * items
    assert rouge_matrix.summaries["backward_transfer"].value == pytest.approx(-0.3)
    assert rouge_matrix.summaries["general_ability_delta"].value == pytest.approx(0.1)
    perplexity = matrices["response_perplexity"]
    assert perplexity.summaries["forgetting"].value == pytest.approx(math.exp(2.0) - math.exp(1.0))
    assert perplexity.summaries["backward_transfer"].value < 0
    for estimate in rouge_matrix.summaries.values():
        assert estimate.low <= estimate.value <= estimate.high


def test_summary_interval_is_paired_over_stages(run_parts):
    """Items differ widely and all lose 0.3, so the loss is certain."""
    items = 40
    spread = [i / items for i in range(items)]
    stages = [
        (run_parts.evaluation(k, "helpdesk", [one - (0.3 if k == 2 else 0.0) for one in spread], [20.0] * items),)
        for k in (0, 1, 2)
    ]
    plan = run_parts.plan(2)
    plan = replace(plan, stages=(replace(plan.stages[0], suites=("helpdesk",)), replace(plan.stages[1], suites=("x",))))
    matrix = next(
        one
        for one in run_report.build_report(plan, stages, run_parts.metrics, seed=0, run_info={}).matrices
        if one.score == "rougeL"
    )
    lost = matrix.summaries["forgetting"]
    assert (lost.low, lost.value, lost.high) == pytest.approx((0.3, 0.3, 0.3))
    assert matrix.summaries["average_accuracy"].stderr > 0.01


def test_suites_of_a_stage_default_to_its_sources_and_name(run_parts):
    from harness.spec.matrix_summaries import stage_of_suite

    plan = run_parts.plan(2)
    assert stage_of_suite(plan) == {"helpdesk": 1, "general": 1}, (
        "both stages train on both sources; the first one teaches"
    )
    apart = replace(
        plan,
        stages=(
            replace(plan.stages[0], name="helpdesk", sources=()),
            replace(plan.stages[1], sources=plan.stages[1].sources[1:]),
        ),
    )
    assert stage_of_suite(apart) == {"helpdesk": 1, "general": 2}


def test_gate_is_evaluated_in_the_report_and_from_its_file(run_parts, tmp_path):
    conditions = [
        {"score": "helpdesk/rougeL", "summary": None, "judge_by": "bound", "tier": "blocks", "gains_at_least": 0.1},
        {
            "score": "general/response_perplexity",
            "summary": None,
            "judge_by": "bound",
            "tier": "blocks",
            "rises_at_most": 0.0001,
        },
        {
            "score": "rougeL",
            "summary": "general_ability_delta",
            "judge_by": "bound",
            "tier": "blocks",
            "at_least": -0.5,
        },
    ]
    judged = run_report.build_report(
        run_parts.plan(), run_parts.evaluations(), run_parts.metrics, seed=0, run_info={}, gate_conditions=conditions
    )
    assert [one.passed for one in judged.gate] == [True, False, True]
    assert not judged.passed
    text = displayed(judged)
    assert "NOT ENOUGH EVIDENCE: general/response_perplexity must rise by at most 0.0001" in text
    judged.write(tmp_path)
    document = json.loads((tmp_path / "report.json").read_text())
    again = gate.evaluate_gate(conditions, run_report.gate_scores_from_report(document))
    assert again == judged.gate
    assert (document["gate"][1]["passed"], document["gate"][1]["outcome"]) == (False, "not enough evidence")


def test_scores_of_one_name_by_two_metrics_have_separate_summaries(run_parts, tmp_path):
    """Two plugins may use the same score name in different suites: gates, tables and MLflow distinguish them."""
    mine = run_parts.metrics["general"]["rouge"]
    metrics = {**run_parts.metrics, "general": {**run_parts.metrics["general"], "mine": mine}}
    evaluations = [
        tuple(
            one
            if one.suite != "general"
            else replace(
                one,
                scores=tuple(
                    replace(score, metric="mine") if score.metric == "rouge" else score for score in one.scores
                ),
            )
            for one in stage
        )
        for stage in run_parts.evaluations()
    ]
    del metrics["general"]["rouge"]
    condition = {
        "score": "mine.rougeL",
        "summary": "general_ability_delta",
        "judge_by": "bound",
        "tier": "blocks",
        "at_least": -0.5,
    }
    judged = run_report.build_report(
        run_parts.plan(), evaluations, metrics, seed=0, run_info={}, gate_conditions=[condition]
    )
    assert {one.called for one in judged.matrices} == {"rouge.rougeL", "mine.rougeL", "response_perplexity"}
    assert judged.passed
    judged.write(tmp_path)
    known = run_report.gate_scores_of_run(tmp_path)
    assert "general_ability_delta:mine.rougeL" in known
    assert gate.evaluate_gate([condition], known) == judged.gate
    assert "mine.rougeL" in displayed(judged)


def test_gate_on_a_later_suite_names_its_first_stage(run_parts, tmp_path):
    evaluations = [stage if number else stage[:1] for number, stage in enumerate(run_parts.evaluations(2))]
    condition = {"score": "general/rougeL", "summary": None, "judge_by": "bound", "tier": "blocks", "rises_at_most": 10}
    judged = run_report.build_report(
        run_parts.plan(2), evaluations, run_parts.metrics, seed=0, run_info={}, gate_conditions=[condition]
    )
    assert judged.gate[0].since == "stage-1"
    assert "since 'stage-1': the base was not measured by it" in " ".join(displayed(judged).split())
    judged.write(tmp_path)
    assert gate.evaluate_gate([condition], run_report.gate_scores_of_run(tmp_path)) == judged.gate


def test_groups_of_items_are_the_units_of_a_report(run_parts):
    """40 items in 20 groups: too few for a verdict or a gate, in every table."""

    def in_groups(evaluation):
        items = tuple(replace(item, group=f"doc {index // 2}") for index, item in enumerate(evaluation.items))
        return replace(evaluation, items=items)

    stages = [tuple(map(in_groups, stage)) for stage in run_parts.evaluations()]
    condition = {"score": "helpdesk/rougeL", "gains_at_least": 0.1, "judge_by": "bound", "tier": "blocks"}
    condition |= {"summary": None}
    judged = run_report.build_report(
        run_parts.plan(), stages, run_parts.metrics, seed=0, run_info={}, gate_conditions=[condition]
    )
    for change in judged.changes:
        assert (change.n, change.difference.groups, change.verdict) == (40, 20, "too few items")
    assert judged.gate[0].outcome == "not enough evidence"
    assert "n = 40 in 20 groups, fewer than 30" in judged.gate[0].format_line()
    assert [matrix.summaries["general_ability_delta"].groups for matrix in judged.matrices] == [20, 20]
    text = displayed(judged)
    assert "n = 40 in 20 groups" in text
    assert run_report.gate_scores_from_report(judged.to_json())["helpdesk/rougeL"].difference.groups == 20
