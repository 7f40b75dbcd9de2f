"""Item-by-item comparison of runs, from their folders."""

from __future__ import annotations

import html
import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from support import compared_runs

from harness.cli import main
from harness.comparison import compare, html_page
from harness.errors import HarnessError
from harness.evaluation.rescore import create_metric
from harness.report.finished_run import load_finished_run
from harness.report.paired_difference import score_difference
from harness.statistics.proportions import mcnemar_p
from harness.statistics.significance import holm
from harness.terminal.comparison_table import format_comparison


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory):
    """Runs with one suite: `weak`, `strong`, `alike` (skill of weak), `short` (fewer items), `few` (20 items)."""
    folder = tmp_path_factory.mktemp("runs")
    compared_runs.write_finished_run(folder / "weak", 0.3, 1)
    compared_runs.write_finished_run(
        folder / "strong", 0.8, 2, document=compared_runs.run_spec(train={"learning_rate": 1e-5, "epochs": 2})
    )
    compared_runs.write_finished_run(folder / "alike", 0.3, 3)
    compared_runs.write_finished_run(folder / "short", 0.8, 2, count=50)
    compared_runs.write_finished_run(folder / "few", 0.9, 2, count=20)
    return folder


@pytest.fixture(autouse=True)
def without_store(monkeypatch, tmp_path):
    """Make every access to a tracking store fail: folders are compared without one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://coop")
    monkeypatch.chdir(tmp_path)


def compare_folders(runs_folder, *names, **options):
    return compare.compare_runs([str(runs_folder / name) for name in names], registry=compared_runs.REGISTRY, **options)


def find_pair(comparison, score, run=1):
    return next(
        score_pair
        for score_pair in comparison.pairs
        if (score_pair.run, f"{score_pair.suite}/{score_pair.score}") == (run, score)
    )


def render_table(comparison, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(format_comparison(comparison))
    return stream.getvalue()


@pytest.fixture(scope="module")
def weak_and_strong(runs_folder):
    return compare_folders(runs_folder, "weak", "strong")


# -- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_kind_of_score_has_its_significance_test(weak_and_strong):
    tests = {score_pair.score: score_pair.test for score_pair in weak_and_strong.pairs}
    assert tests == {
        "exact_match": "McNemar",
        **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum", "length_ratio"), "paired t"),
        **dict.fromkeys(("response_perplexity", "response_nll"), "paired t"),
        **dict.fromkeys(("bleu", "chrf"), "approximate randomisation"),
    }
    assert weak_and_strong.not_comparable == ()


def test_binary_score_is_tested_with_mcnemar(runs_folder, weak_and_strong):
    right = {}
    for name in ("weak", "strong"):
        scores = json.loads((runs_folder / name / "scores.json").read_text())["stages"][1]["suites"]["desk"]["scores"]
        right[name] = [vector[0] == 1 for vector in next(s for s in scores if s["name"] == "exact_match")["statistics"]]
    score_pair = find_pair(weak_and_strong, "desk/exact_match")
    changes = [int(after) - int(before) for before, after in zip(right["weak"], right["strong"], strict=True)]
    assert score_pair.p == mcnemar_p(changes.count(1), changes.count(-1))
    assert score_pair.first.value == sum(right["weak"]) / 60
    assert score_pair.difference.value == pytest.approx((sum(right["strong"]) - sum(right["weak"])) / 60)
    assert score_pair.difference.low < score_pair.difference.value < score_pair.difference.high


@pytest.mark.slow
def test_verdicts_follow_the_difference_and_needed_items_exceed_n(runs_folder, weak_and_strong):
    assert find_pair(weak_and_strong, "desk/bleu").verdict == "better"
    assert find_pair(weak_and_strong, "desk/bleu").needed is None
    worse = compare_folders(runs_folder, "strong", "weak")
    assert find_pair(worse, "desk/bleu").verdict == "worse"
    assert find_pair(worse, "desk/bleu").difference.value == pytest.approx(
        -find_pair(weak_and_strong, "desk/bleu").difference.value
    )
    alike = find_pair(compare_folders(runs_folder, "weak", "alike"), "desk/rougeL")
    assert alike.verdict == "no evidence"
    assert alike.difference.low <= 0 <= alike.difference.high
    assert alike.needed > 60


def test_fewer_than_thirty_items_give_no_verdict(runs_folder):
    score_pair = find_pair(compare_folders(runs_folder, "weak", "few"), "desk/rougeL")
    assert score_pair.n == 20
    assert score_pair.difference.low > 0
    assert score_pair.verdict == "too few items"
    assert score_pair.needed >= 30


@pytest.mark.slow
def test_holm_correction_covers_every_hypothesis_once(runs_folder):
    comparison = compare_folders(runs_folder, "weak", "strong", "alike")
    assert len(comparison.pairs) == 20
    tested = [score_pair for score_pair in comparison.pairs if score_pair.score != "response_perplexity"]
    assert len(tested) == 18
    assert [score_pair.p_holm for score_pair in tested] == pytest.approx(holm([score_pair.p for score_pair in tested]))
    for run in (1, 2):
        nll, perplexity = (find_pair(comparison, f"desk/response_{name}", run) for name in ("nll", "perplexity"))
        assert (nll.p, nll.p_holm, nll.verdict) == (perplexity.p, perplexity.p_holm, perplexity.verdict)


def test_comparison_has_the_interval_that_a_report_has(tmp_path):
    """A run compared with its own base model gives the change that its report has."""
    base, tuned = (compared_runs.build_items(60, skill, 2) for skill in (0.3, 0.6))
    compared_runs.write_run(tmp_path / "base", [{"desk": base}, {"desk": base}])
    compared_runs.write_run(tmp_path / "tuned", [{"desk": base}, {"desk": tuned}])
    (before,), (after,) = load_finished_run(tmp_path / "tuned").evaluations
    pairs = compare_folders(tmp_path, "base", "tuned").pairs
    assert len(pairs) == 10
    for pair, old, new in zip(pairs, before.scores, after.scores, strict=True):
        metric = create_metric(compared_runs.REGISTRY, old.metric, {})
        assert pair.difference == score_difference((before, old), (after, new), metric).difference


@pytest.mark.slow
@pytest.mark.parametrize(("group_size", "groups"), [(2, 30), (5, 12)])
def test_groups_of_items_are_the_units_of_a_comparison(tmp_path, group_size, groups):
    def in_groups(items):
        return tuple(replace(item, group=f"doc {index // group_size}") for index, item in enumerate(items))

    for name, skill in (("one", 0.1), ("two", 0.9)):
        items = [in_groups(compared_runs.build_items(60, each, 2)) for each in (0.1, skill)]
        compared_runs.write_run(tmp_path / name, [{"desk": items[0]}, {"desk": items[1]}])
    comparison = compare_folders(tmp_path, "one", "two")
    for pair in comparison.pairs:
        assert (pair.n, pair.difference.groups, pair.first.groups) == (60, groups, groups)
        assert groups >= 30 or pair.verdict == "too few items"
    exact = find_pair(comparison, "desk/exact_match")
    assert exact.test == "paired t", "answers of one group may depend on each other"
    assert groups < 30 or exact.verdict == "better"
    assert f"n = 60 in {groups} groups" in render_table(comparison, 110)
    page = html_page.write_comparison_html(comparison, tmp_path / "page.html").read_text()
    assert f"n = 60 in {groups} groups" in page


def test_score_without_direction_gets_the_verdict_different(tmp_path):
    for name, words in (("one", 8), ("two", 4)):
        items = [
            replace(item, answer=compared_runs.random_sentence(compared_runs.random.Random(item.id), words))
            for item in compared_runs.build_items(40, 0, 1)
        ]
        document = compared_runs.run_spec(metrics={"length_ratio": {}})
        compared_runs.write_run(tmp_path / name, [{"desk": items}, {"desk": items}], document)
    score_pair = find_pair(compare_folders(tmp_path, "one", "two"), "desk/length_ratio")
    assert score_pair.difference.high < 0
    assert score_pair.verdict == "different"


def test_comparison_is_reproducible(runs_folder, weak_and_strong):
    assert compare_folders(runs_folder, "weak", "strong").to_json() == weak_and_strong.to_json()


# -- items and runs ------------------------------------------------------------------------------------------


def test_items_of_only_one_run_are_dropped_with_count_and_reason(runs_folder):
    comparison = compare_folders(runs_folder, "weak", "short")
    score_pair = find_pair(comparison, "desk/exact_match")
    assert (score_pair.n, score_pair.dropped) == (50, {"only in weak": 10})
    assert score_pair.first.n == 50, "the baseline's own value is over the shared items too"
    assert "desk of run 2: 10 items left out, only in weak" in render_table(comparison, 100)


def test_duplicate_item_is_dropped(runs_folder, tmp_path):
    items = compared_runs.build_items(40, 0.5, 1)
    twice = (*items[:39], items[0])
    compared_runs.write_run(tmp_path / "twice", [{"desk": twice}, {"desk": twice}])
    compared_runs.write_run(tmp_path / "once", [{"desk": items}, {"desk": items}])
    score_pair = find_pair(compare_folders(tmp_path, "once", "twice"), "desk/exact_match")
    assert (score_pair.n, score_pair.dropped) == (38, {"only in once": 1, "twice in one of the two": 1})


@pytest.mark.slow
def test_answers_of_a_continued_run_are_those_of_its_own_last_stage(tmp_path):
    """Its scores contain the stages of the earlier run, but its files are numbered from its own start."""
    base, first, last = (
        compared_runs.build_items(40, 0.1, 1),
        compared_runs.build_items(40, 0.4, 2),
        compared_runs.build_items(40, 0.8, 3),
    )
    compared_runs.write_run(tmp_path / "once", [{"desk": base}, {"desk": first}])
    folder = compared_runs.write_run(
        tmp_path / "continued", [{"desk": base}, {"desk": first}, {"desk": last}], predictions=False
    )
    (folder / "data.json").write_text(json.dumps({"stages": ["later"]}))
    compared_runs.write_predictions(folder, "desk", 0, first)
    compared_runs.write_predictions(folder, "desk", 1, last)
    comparison = compare_folders(tmp_path, "once", "continued")
    answers = {item.id: item.answer for item in last}
    assert comparison.notes == ()
    assert len(comparison.items) == 10
    assert all(item.second.answer == answers[item.id] for item in comparison.items)


def test_suites_without_a_common_item_are_not_compared(runs_folder, tmp_path):
    items = compared_runs.build_items(40, 0.5, 1, first=1000)
    compared_runs.write_run(tmp_path / "other", [{"desk": items}, {"desk": items}])
    comparison = compare.compare_runs(
        [str(runs_folder / "weak"), str(tmp_path / "other")], registry=compared_runs.REGISTRY
    )
    assert comparison.pairs == ()
    assert [(entry.suite, entry.why) for entry in comparison.not_comparable] == [
        ("desk", "the two runs share no item of this suite")
    ]
    assert "desk of run 2 not compared: the two runs share no item of this suite" in render_table(comparison)


def test_scores_with_different_signatures_are_not_compared(runs_folder, tmp_path):
    document = compared_runs.run_spec(metrics={**compared_runs.METRICS, "bleu": {"lowercase": True}})
    compared_runs.write_finished_run(tmp_path / "lower", 0.8, 2, document=document)
    comparison = compare.compare_runs(
        [str(runs_folder / "weak"), str(tmp_path / "lower")], registry=compared_runs.REGISTRY
    )
    assert "bleu" not in {score_pair.score for score_pair in comparison.pairs}
    assert "chrf" in {score_pair.score for score_pair in comparison.pairs}
    (entry,) = comparison.not_comparable
    assert (entry.suite, entry.score) == ("desk", "bleu")
    assert "has two signatures" in entry.why
    assert "case:mixed" in entry.why
    assert "case:lc" in entry.why


def test_suite_or_score_of_only_one_run_is_reported_with_that_run(runs_folder, tmp_path):
    items = {"desk": compared_runs.build_items(40, 0.1, 1), "more": compared_runs.build_items(40, 0.1, 1)}
    compared_runs.write_run(tmp_path / "wide", [items, items], compared_runs.run_spec(suites=("desk", "more")))
    few = {name: compared_runs.METRICS[name] for name in ("exact_match", "rouge")}
    compared_runs.write_finished_run(
        tmp_path / "narrow", 0.5, 2, count=40, document=compared_runs.run_spec(metrics=few)
    )
    comparison = compare_folders(tmp_path, "narrow", "wide")
    assert {score_pair.score for score_pair in comparison.pairs} == {
        "exact_match",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
    }
    reasons = {(entry.suite, entry.score): entry.why for entry in comparison.not_comparable}
    assert reasons["more", ""] == "only wide has this suite"
    assert reasons["desk", "bleu"] == "only wide has this score"
    text = " ".join(render_table(comparison, 200).split())
    assert "more of run 2 not compared: only wide has this suite" in text
    assert "desk/bleu, chrf, response_perplexity" in text
    assert "of run 2 not compared: only wide has this score" in text
    other = compare_folders(tmp_path, "wide", "narrow")
    assert {entry.why for entry in other.not_comparable} == {
        "only wide has this suite",
        "only wide has this score",
    }
    page = html_page.write_comparison_html(comparison, tmp_path / "page.html").read_text()
    assert "wide, more: not compared: only wide has this suite" in html.unescape(page)


def test_score_computed_by_two_metrics_is_not_compared(runs_folder, tmp_path):
    for name in ("weak", "strong"):
        written = json.loads((runs_folder / name / "scores.json").read_text())
        for stage in written["stages"]:
            for score in stage["suites"]["desk"]["scores"]:
                if score["metric"] == "chrf" and name == "strong":
                    score["metric"] = "mine"
        (tmp_path / name).mkdir()
        for file in ("spec.json", "report.json"):
            (tmp_path / name / file).write_text((runs_folder / name / file).read_text())
        (tmp_path / name / "scores.json").write_text(json.dumps(written))
    (entry,) = compare_folders(tmp_path, "weak", "strong").not_comparable
    assert (entry.score, entry.why) == ("chrf", "computed by different metrics: chrf and mine")


@pytest.mark.slow
def test_baseline_can_be_any_run_and_the_order_stays(runs_folder):
    comparison = compare_folders(runs_folder, "weak", "strong", baseline=str(runs_folder / "strong"))
    assert ([run.name for run in comparison.runs], comparison.baseline) == (["weak", "strong"], 1)
    assert find_pair(comparison, "desk/bleu", run=0).verdict == "worse"
    first = compare_folders(runs_folder, "weak", "strong", baseline=str(runs_folder / "alike"))
    assert [run.name for run in first.runs] == ["alike", "weak", "strong"]
    assert {score_pair.run for score_pair in first.pairs} == {1, 2}


def test_folderof_an_experiment_means_all_its_arms(runs_folder, tmp_path):
    for name in ("naive", "mixing"):
        compared_runs.write_finished_run(tmp_path / "sweep" / "arms" / name, 0.5, name)
    comparison = compare.compare_runs([str(tmp_path / "sweep")], registry=compared_runs.REGISTRY)
    assert [run.name for run in comparison.runs] == ["mixing", "naive"]
    with pytest.raises(HarnessError, match="matches 2 runs; name one of them"):
        compare.compare_runs(
            [str(runs_folder / "weak")], baseline=str(tmp_path / "sweep"), registry=compared_runs.REGISTRY
        )


def test_unfinished_run_is_shown_and_not_compared(runs_folder, tmp_path):
    compared_runs.write_finished_run(tmp_path / "cut", 0.8, 2, finished=False)
    comparison = compare.compare_runs(
        [str(runs_folder / "weak"), str(tmp_path / "cut")], registry=compared_runs.REGISTRY
    )
    assert comparison.pairs == ()
    assert comparison.not_comparable[0].why == "the run is not finished"
    assert comparison.runs[1].scores["desk/bleu"].delta is None


def test_spec_differences_of_folders_are_listed(weak_and_strong):
    assert weak_and_strong.differences == {"train.learning_rate": ("0.0002", "1e-05")}


# -- unavailable metrics ---------------------------------------------------------------------------------------


def test_missing_metric_excludes_only_its_own_scores(runs_folder, tmp_path):
    for name in ("weak", "strong"):
        written = json.loads((runs_folder / name / "scores.json").read_text())
        for stage in written["stages"]:
            for score in stage["suites"]["desk"]["scores"]:
                if score["metric"] == "chrf":
                    score["metric"] = "gone"
        (tmp_path / name).mkdir()
        for file in ("spec.json", "report.json"):
            (tmp_path / name / file).write_text((runs_folder / name / file).read_text())
        (tmp_path / name / "scores.json").write_text(json.dumps(written))
    comparison = compare_folders(tmp_path, "weak", "strong")
    assert [entry.score for entry in comparison.not_comparable] == ["chrf"]
    assert "no plugin provides the metric 'gone'" in comparison.not_comparable[0].why
    assert "bleu" in {score_pair.score for score_pair in comparison.pairs}


def test_metric_that_does_not_reproduce_a_score_excludes_it(runs_folder, tmp_path):
    for name in ("weak", "strong"):
        written = json.loads((runs_folder / name / "scores.json").read_text())
        for score in written["stages"][1]["suites"]["desk"]["scores"]:
            if score["name"] == "bleu":
                score["value"] += 1.0
        (tmp_path / name).mkdir()
        for file in ("spec.json", "report.json"):
            (tmp_path / name / file).write_text((runs_folder / name / file).read_text())
        (tmp_path / name / "scores.json").write_text(json.dumps(written))
    comparison = compare_folders(tmp_path, "weak", "strong")
    assert [entry.score for entry in comparison.not_comparable] == ["bleu"]
    assert "the installed metric 'bleu' computes" in comparison.not_comparable[0].why


# -- most changed items --------------------------------------------------------------------------------------


def test_most_changed_items_are_listed_with_both_answers(runs_folder):
    comparison = compare_folders(runs_folder, "weak", "strong", score="desk/rougeL", items=5)
    assert comparison.score == "desk/rougeL"
    changes = [abs(item.change) for item in comparison.items]
    assert len(changes) == 5
    assert changes == sorted(changes, reverse=True)
    item = comparison.items[0]
    answers = {item.id: item.answer for item in compared_runs.build_items(60, 0.8, 2)}
    assert item.second.answer == answers[item.id]
    assert item.change == pytest.approx(item.second.value - item.first.value)
    assert item.prompt.startswith("question")
    text = render_table(comparison, 100)
    assert "the 5 items that changed most in desk/rougeL, run 2" in text
    assert item.second.answer in text


def test_unchanged_items_are_not_listed(runs_folder):
    assert compare_folders(runs_folder, "weak", "weak", "alike", score="desk/length_ratio").items == ()


@pytest.mark.slow
def test_items_without_stored_answers_are_listed_with_a_note(runs_folder, tmp_path):
    compared_runs.write_finished_run(tmp_path / "bare", 0.8, 2, predictions=False)
    comparison = compare.compare_runs(
        [str(runs_folder / "weak"), str(tmp_path / "bare")], registry=compared_runs.REGISTRY
    )
    assert comparison.items[0].second.answer is None
    assert comparison.items[0].first.answer is not None
    assert comparison.notes == ("answers of bare: holds no predictions/desk-stage1.jsonl",)
    assert "(not kept)" in render_table(comparison)


def test_likelihoods_are_shown_as_the_answer_of_multiple_choice(tmp_path):
    def questions(right):
        return [
            replace(
                item,
                answer=None,
                choices=("yes", "no"),
                gold=0,
                choice_lls=(-1.0, -2.0) if index < right else (-2.0, -1.0),
            )
            for index, item in enumerate(compared_runs.build_items(40, 0, 1))
        ]

    for name, right in (("one", 10), ("two", 35)):
        document = compared_runs.run_spec(metrics={"multiple_choice": {}})
        compared_runs.write_run(tmp_path / name, [{"desk": questions(5)}, {"desk": questions(right)}], document)
    comparison = compare_folders(tmp_path, "one", "two")
    assert find_pair(comparison, "desk/acc").test == "McNemar"
    assert comparison.items[0].second.answer == "yes (-1.00 nats); no (-2.00 nats)"


def test_unknown_score_is_an_error_that_lists_the_compared_scores(runs_folder):
    with pytest.raises(HarnessError, match=r"no score 'desk/blue' was compared; there are: desk/exact_match"):
        compare_folders(runs_folder, "weak", "strong", score="desk/blue")


def test_score_option_with_a_single_run_is_an_error(runs_folder):
    with pytest.raises(HarnessError, match=r"--score: a single run is not compared; add another run"):
        compare_folders(runs_folder, "weak", score="desk/bleu")


@pytest.mark.slow
def test_terminal_shows_items_of_many_runs_only_on_request(runs_folder):
    comparison = compare_folders(runs_folder, "weak", "strong", "alike")
    assert {item.run for item in comparison.items} == {1, 2}
    assert "changed most" not in render_table(comparison)
    assert "changed most" in render_table(
        compare_folders(runs_folder, "weak", "strong", "alike", score="desk/bleu", items=1)
    )


# -- tables -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 110])
@pytest.mark.parametrize("names", [("weak", "strong"), ("weak", "alike", "short")], ids=["two runs", "three runs"])
def test_table_fits_any_width(runs_folder, names, width):
    text = render_table(compare_folders(runs_folder, *names), width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("exact_match", "response_perplexity ↓", "verdict", "0.267", "McNemar", "Holm's"):
        assert word in text
    assert "no evidence" in text


def test_hostile_answers_are_shown_as_text(tmp_path):
    items = compared_runs.build_items(40, 0.5, 1)
    hostile = [replace(item, answer="[red]x[/red]\x1b[2J") for item in items]
    compared_runs.write_run(tmp_path / "one", [{"desk": items}, {"desk": items}])
    compared_runs.write_run(tmp_path / "two", [{"desk": items}, {"desk": hostile}])
    text = render_table(compare_folders(tmp_path, "one", "two"), 100)
    assert "[red]x[/red]␛[2J" in text
    assert "\x1b" not in text


def test_comparison_is_serializable(runs_folder):
    document = json.loads(json.dumps(compare_folders(runs_folder, "weak", "short").to_json(), allow_nan=False))
    assert document["baseline"] == 0
    assert document["pairs"][0]["dropped"] == {"only in weak": 10}
    assert document["pairs"][0]["difference"]["n"] == 50
    assert document["items"][0]["second"]["answer"]
    assert document["runs"][0]["files"] == "folder"


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_prints_json_and_writes_a_page(runs_folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    runs = [str(runs_folder / "weak"), str(runs_folder / "strong")]
    assert main.main(["compare", *runs, "--json", "--html", str(page), "--items", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["items"]) == 2
    text = page.read_text(encoding="utf-8")
    for score_pair in document["pairs"]:
        assert f'value="{score_pair["difference"]["value"]}"' in text, "the page's numbers are those of the JSON"
    for item in document["items"]:
        assert html.escape(item["prompt"]) in text
        assert html.escape(item["second"]["answer"]) in text
    assert text.index("weak") < text.index("strong"), "the baseline is first"


def test_unwritable_page_is_an_error(runs_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert main.main(["compare", str(runs_folder / "weak"), "--html", str(tmp_path / "file" / "x.html")]) == 2
    message = capsys.readouterr().err
    assert "x.html" in message
    assert "cannot write" in message


@pytest.mark.slow
def test_comparing_folders_imports_neither_torch_nor_mlflow(runs_folder):
    script = (
        "import sys; from harness.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, [n for n in ('torch', 'mlflow', 'transformers', 'datasets') if n in sys.modules])"
    )
    arguments = ["compare", str(runs_folder / "weak"), str(runs_folder / "strong")]
    process = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "0 []"
    assert process.stderr == ""
