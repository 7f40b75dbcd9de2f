"""Runs compared item by item, from the folders that they leave."""

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
from harness.statistics.significance import holm, mcnemar
from harness.terminal.comparison_table import ComparisonTable


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of one suite: `weak`, `strong`, `alike` (as weak, by chance), `short` (fewer items), `few` (20 items)."""
    place = tmp_path_factory.mktemp("runs")
    compared_runs.run(place / "weak", 0.3, 1)
    compared_runs.run(place / "strong", 0.8, 2, document=compared_runs.spec(train={"learning_rate": 1e-5, "epochs": 2}))
    compared_runs.run(place / "alike", 0.3, 3)
    compared_runs.run(place / "short", 0.8, 2, count=50)
    compared_runs.run(place / "few", 0.9, 2, count=20)
    return place


@pytest.fixture(autouse=True)
def no_store(monkeypatch, tmp_path):
    """Folders are compared without a store: to ask one would fail here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://coop")
    monkeypatch.chdir(tmp_path)


def made(folder, *names, **options):
    return compare.compare_runs([str(folder / name) for name in names], registry=compared_runs.REGISTRY, **options)


def pair(comparison, score, run=1):
    return next(one for one in comparison.pairs if (one.run, f"{one.suite}/{one.score}") == (run, score))


def shown(comparison, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(ComparisonTable(comparison))
    return stream.getvalue()


@pytest.fixture(scope="module")
def both(folder):
    return made(folder, "weak", "strong")


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_every_shared_score_is_compared_by_the_test_that_fits_it(both):
    tests = {one.score: one.test for one in both.pairs}
    assert tests == {
        "exact_match": "McNemar",
        **dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum"), "paired bootstrap"),
        **dict.fromkeys(
            ("bleu", "chrf", "response_perplexity", "response_nll", "length_ratio"), "approximate randomisation"
        ),
    }
    assert both.not_comparable == ()


def test_a_share_is_tested_by_the_items_that_changed(folder, both):
    right = {}
    for name in ("weak", "strong"):
        scores = json.loads((folder / name / "scores.json").read_text())["stages"][1]["suites"]["desk"]["scores"]
        right[name] = [one[0] == 1 for one in next(s for s in scores if s["name"] == "exact_match")["statistics"]]
    one = pair(both, "desk/exact_match")
    assert one.p == mcnemar(right["weak"], right["strong"])
    assert one.first.value == sum(right["weak"]) / 60
    assert one.difference.value == pytest.approx((sum(right["strong"]) - sum(right["weak"])) / 60)
    assert one.difference.low < one.difference.value < one.difference.high


def test_better_and_no_evidence_are_told_apart_and_the_needed_items_are_more_than_there_were(folder, both):
    assert pair(both, "desk/bleu").verdict == "better"
    assert pair(both, "desk/bleu").needed is None
    worse = made(folder, "strong", "weak")
    assert pair(worse, "desk/bleu").verdict == "worse"
    assert pair(worse, "desk/bleu").difference.value == pytest.approx(-pair(both, "desk/bleu").difference.value)
    alike = pair(made(folder, "weak", "alike"), "desk/rougeL")
    assert alike.verdict == "no evidence"
    assert alike.difference.low <= 0 <= alike.difference.high
    assert alike.needed > 60


def test_fewer_than_thirty_items_give_no_verdict_however_large_the_difference(folder):
    one = pair(made(folder, "weak", "few"), "desk/rougeL")
    assert one.n == 20
    assert one.difference.low > 0
    assert one.verdict == "too few items"
    assert one.needed >= 30


def test_p_values_are_adjusted_for_every_pair_of_the_comparison(folder):
    comparison = made(folder, "weak", "strong", "alike")
    assert len(comparison.pairs) == 20
    assert [one.p_holm for one in comparison.pairs] == pytest.approx(holm([one.p for one in comparison.pairs]))


def test_a_score_without_a_better_direction_is_at_most_different(tmp_path):
    for name, words in (("one", 8), ("two", 4)):
        items = [
            replace(one, answer=compared_runs.sentence(compared_runs.random.Random(one.id), words))
            for one in compared_runs.items(40, 0, 1)
        ]
        document = compared_runs.spec(metrics={"length_ratio": {}})
        compared_runs.write(tmp_path / name, [{"desk": items}, {"desk": items}], document)
    one = pair(made(tmp_path, "one", "two"), "desk/length_ratio")
    assert one.difference.high < 0
    assert one.verdict == "different"


def test_the_same_comparison_twice_gives_the_same_numbers(folder, both):
    assert made(folder, "weak", "strong").to_json() == both.to_json()


# -- which items, which runs ------------------------------------------------------------------------------------------


def test_items_that_one_run_lacks_are_left_out_with_their_number_and_the_reason(folder):
    comparison = made(folder, "weak", "short")
    one = pair(comparison, "desk/exact_match")
    assert (one.n, one.dropped) == (50, {"only in weak": 10})
    assert one.first.n == 50, "the baseline's own value is over the shared items too"
    assert "desk of run 2: 10 items left out, only in weak" in shown(comparison, 100)


def test_an_item_that_stands_twice_is_left_out(folder, tmp_path):
    items = compared_runs.items(40, 0.5, 1)
    twice = (*items[:39], items[0])
    compared_runs.write(tmp_path / "twice", [{"desk": twice}, {"desk": twice}])
    compared_runs.write(tmp_path / "once", [{"desk": items}, {"desk": items}])
    one = pair(made(tmp_path, "once", "twice"), "desk/exact_match")
    assert (one.n, one.dropped) == (38, {"only in once": 1, "twice in one of the two": 1})


def test_the_answers_of_a_run_that_went_on_from_another_are_those_of_its_own_last_stage(tmp_path):
    """Its scores tell of the earlier run's stages too, and its files are numbered from its own start."""
    base, first, last = (
        compared_runs.items(40, 0.1, 1),
        compared_runs.items(40, 0.4, 2),
        compared_runs.items(40, 0.8, 3),
    )
    compared_runs.write(tmp_path / "once", [{"desk": base}, {"desk": first}])
    place = compared_runs.write(
        tmp_path / "onward", [{"desk": base}, {"desk": first}, {"desk": last}], predictions=False
    )
    (place / "data.json").write_text(json.dumps({"stages": ["later"]}))
    compared_runs.keep(place, "desk", 0, first)
    compared_runs.keep(place, "desk", 1, last)
    comparison = made(tmp_path, "once", "onward")
    answers = {item.id: item.answer for item in last}
    assert comparison.notes == ()
    assert len(comparison.items) == 10
    assert all(one.second.answer == answers[one.id] for one in comparison.items)


def test_suites_without_a_common_item_are_not_compared(folder, tmp_path):
    items = compared_runs.items(40, 0.5, 1, first=1000)
    compared_runs.write(tmp_path / "other", [{"desk": items}, {"desk": items}])
    comparison = compare.compare_runs([str(folder / "weak"), str(tmp_path / "other")], registry=compared_runs.REGISTRY)
    assert comparison.pairs == ()
    assert [(one.suite, one.why) for one in comparison.not_comparable] == [("desk", "the two share no item of it")]
    assert "desk of run 2 not compared: the two share no item of it" in shown(comparison)


def test_scores_that_were_measured_in_two_ways_are_not_compared(folder, tmp_path):
    document = compared_runs.spec(metrics={**compared_runs.METRICS, "bleu": {"lowercase": True}})
    compared_runs.run(tmp_path / "lower", 0.8, 2, document=document)
    comparison = compare.compare_runs([str(folder / "weak"), str(tmp_path / "lower")], registry=compared_runs.REGISTRY)
    assert "bleu" not in {one.score for one in comparison.pairs}
    assert "chrf" in {one.score for one in comparison.pairs}
    (gone,) = comparison.not_comparable
    assert (gone.suite, gone.score) == ("desk", "bleu")
    assert "has two signatures" in gone.why
    assert "case:mixed" in gone.why
    assert "case:lc" in gone.why


def test_a_suite_or_score_that_one_of_the_runs_lacks_is_named_with_who_has_it(folder, tmp_path):
    items = {"desk": compared_runs.items(40, 0.1, 1), "more": compared_runs.items(40, 0.1, 1)}
    compared_runs.write(tmp_path / "wide", [items, items], compared_runs.spec(suites=("desk", "more")))
    few = {name: compared_runs.METRICS[name] for name in ("exact_match", "rouge")}
    compared_runs.run(tmp_path / "narrow", 0.5, 2, count=40, document=compared_runs.spec(metrics=few))
    comparison = made(tmp_path, "narrow", "wide")
    assert {one.score for one in comparison.pairs} == {"exact_match", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    told = {(one.suite, one.score): one.why for one in comparison.not_comparable}
    assert told["more", ""] == "narrow has no such suite, wide has"
    assert told["desk", "bleu"] == "narrow has no such score, wide has"
    text = " ".join(shown(comparison, 200).split())
    assert "more of run 2 not compared: narrow has no such suite, wide has" in text
    assert "desk/bleu, chrf, response_perplexity" in text
    assert "of run 2 not compared: narrow has no such score, wide has" in text
    other = made(tmp_path, "wide", "narrow")
    assert {one.why for one in other.not_comparable} == {
        "narrow has no such suite, wide has",
        "narrow has no such score, wide has",
    }
    shown_page = html_page.write_comparison_html(comparison, tmp_path / "page.html").read_text()
    assert "wide, more: not compared: narrow has no such suite, wide has" in html.unescape(shown_page)


def test_one_score_by_two_metrics_is_not_compared_and_both_are_named(folder, tmp_path):
    for name in ("weak", "strong"):
        written = json.loads((folder / name / "scores.json").read_text())
        for stage in written["stages"]:
            for score in stage["suites"]["desk"]["scores"]:
                if score["metric"] == "chrf" and name == "strong":
                    score["metric"] = "mine"
        (tmp_path / name).mkdir()
        for file in ("spec.json", "report.json"):
            (tmp_path / name / file).write_text((folder / name / file).read_text())
        (tmp_path / name / "scores.json").write_text(json.dumps(written))
    (gone,) = made(tmp_path, "weak", "strong").not_comparable
    assert (gone.score, gone.why) == ("chrf", "two metrics give it: chrf in the one, mine in the other")


def test_the_baseline_can_be_another_run_and_the_order_stays(folder):
    comparison = made(folder, "weak", "strong", baseline=str(folder / "strong"))
    assert ([run.name for run in comparison.runs], comparison.baseline) == (["weak", "strong"], 1)
    assert pair(comparison, "desk/bleu", run=0).verdict == "worse"
    first = made(folder, "weak", "strong", baseline=str(folder / "alike"))
    assert [run.name for run in first.runs] == ["alike", "weak", "strong"]
    assert {one.run for one in first.pairs} == {1, 2}


def test_a_folder_of_arms_stands_for_its_arms(folder, tmp_path):
    for name in ("naive", "mixing"):
        compared_runs.run(tmp_path / "sweep" / "arms" / name, 0.5, name)
    comparison = compare.compare_runs([str(tmp_path / "sweep")], registry=compared_runs.REGISTRY)
    assert [run.name for run in comparison.runs] == ["mixing", "naive"]
    with pytest.raises(HarnessError, match="stands for 2 runs; name one of them"):
        compare.compare_runs([str(folder / "weak")], baseline=str(tmp_path / "sweep"), registry=compared_runs.REGISTRY)


def test_a_run_that_has_not_come_to_its_end_is_shown_and_not_compared(folder, tmp_path):
    compared_runs.run(tmp_path / "cut", 0.8, 2, finished=False)
    comparison = compare.compare_runs([str(folder / "weak"), str(tmp_path / "cut")], registry=compared_runs.REGISTRY)
    assert comparison.pairs == ()
    assert comparison.not_comparable[0].why == "the run has not come to its end"
    assert comparison.runs[1].scores["desk/bleu"].delta is None


def test_what_differs_in_the_specs_of_folders_is_named(both):
    assert both.differences == {"train.learning_rate": ("0.0002", "1e-05")}


# -- metrics that cannot be had ---------------------------------------------------------------------------------------


def test_a_metric_that_nobody_brings_any_more_costs_its_own_scores_alone(folder, tmp_path):
    for name in ("weak", "strong"):
        written = json.loads((folder / name / "scores.json").read_text())
        for stage in written["stages"]:
            for score in stage["suites"]["desk"]["scores"]:
                if score["metric"] == "chrf":
                    score["metric"] = "gone"
        (tmp_path / name).mkdir()
        for file in ("spec.json", "report.json"):
            (tmp_path / name / file).write_text((folder / name / file).read_text())
        (tmp_path / name / "scores.json").write_text(json.dumps(written))
    comparison = made(tmp_path, "weak", "strong")
    assert [one.score for one in comparison.not_comparable] == ["chrf"]
    assert "no plugin brings a metric 'gone'" in comparison.not_comparable[0].why
    assert "bleu" in {one.score for one in comparison.pairs}


def test_a_metric_that_gives_other_numbers_here_is_not_trusted(folder, tmp_path):
    for name in ("weak", "strong"):
        written = json.loads((folder / name / "scores.json").read_text())
        for score in written["stages"][1]["suites"]["desk"]["scores"]:
            if score["name"] == "bleu":
                score["value"] += 1.0
        (tmp_path / name).mkdir()
        for file in ("spec.json", "report.json"):
            (tmp_path / name / file).write_text((folder / name / file).read_text())
        (tmp_path / name / "scores.json").write_text(json.dumps(written))
    comparison = made(tmp_path, "weak", "strong")
    assert [one.score for one in comparison.not_comparable] == ["bleu"]
    assert "the metric 'bleu' here gives" in comparison.not_comparable[0].why


# -- the items that changed most --------------------------------------------------------------------------------------


def test_the_items_that_changed_most_are_told_with_both_answers(folder):
    comparison = made(folder, "weak", "strong", score="desk/rougeL", items=5)
    assert comparison.score == "desk/rougeL"
    changes = [abs(one.change) for one in comparison.items]
    assert len(changes) == 5
    assert changes == sorted(changes, reverse=True)
    one = comparison.items[0]
    answers = {item.id: item.answer for item in compared_runs.items(60, 0.8, 2)}
    assert one.second.answer == answers[one.id]
    assert one.change == pytest.approx(one.second.value - one.first.value)
    assert one.prompt.startswith("question")
    text = shown(comparison, 100)
    assert "the 5 items that changed most in desk/rougeL, run 2" in text
    assert one.second.answer in text


def test_items_that_did_not_change_are_no_items_that_changed(folder):
    assert made(folder, "weak", "weak", "alike", score="desk/length_ratio").items == ()


def test_without_the_answers_the_items_are_named_and_the_lack_is_said(folder, tmp_path):
    compared_runs.run(tmp_path / "bare", 0.8, 2, predictions=False)
    comparison = compare.compare_runs([str(folder / "weak"), str(tmp_path / "bare")], registry=compared_runs.REGISTRY)
    assert comparison.items[0].second.answer is None
    assert comparison.items[0].first.answer is not None
    assert comparison.notes == ("answers of bare: holds no predictions/desk-stage1.jsonl",)
    assert "(not kept)" in shown(comparison)


def test_likelihoods_are_told_where_nothing_was_generated(tmp_path):
    def questions(right):
        return [
            replace(
                one,
                answer=None,
                choices=("yes", "no"),
                gold=0,
                choice_lls=(-1.0, -2.0) if number < right else (-2.0, -1.0),
            )
            for number, one in enumerate(compared_runs.items(40, 0, 1))
        ]

    for name, right in (("one", 10), ("two", 35)):
        document = compared_runs.spec(metrics={"multiple_choice": {}})
        compared_runs.write(tmp_path / name, [{"desk": questions(5)}, {"desk": questions(right)}], document)
    comparison = made(tmp_path, "one", "two")
    assert pair(comparison, "desk/acc").test == "McNemar"
    assert comparison.items[0].second.answer == "yes (-1.00 nats); no (-2.00 nats)"


def test_a_score_that_was_not_compared_is_refused_with_those_that_were(folder):
    with pytest.raises(HarnessError, match=r"no score 'desk/blue' was compared; there are: desk/exact_match"):
        made(folder, "weak", "strong", score="desk/blue")


def test_a_score_of_one_run_alone_is_refused_as_nothing_is_compared(folder):
    with pytest.raises(HarnessError, match=r"--score: one run alone is compared with nothing; name another run"):
        made(folder, "weak", score="desk/bleu")


def test_of_many_runs_the_terminal_shows_items_only_when_asked_and_json_always(folder):
    comparison = made(folder, "weak", "strong", "alike")
    assert {one.run for one in comparison.items} == {1, 2}
    assert "changed most" not in shown(comparison)
    assert "changed most" in shown(made(folder, "weak", "strong", "alike", score="desk/bleu", items=1))


# -- how it looks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 110])
@pytest.mark.parametrize("names", [("weak", "strong"), ("weak", "alike", "short")], ids=["two runs", "three runs"])
def test_every_figure_fits_at_any_width(folder, names, width):
    text = shown(made(folder, *names), width)
    assert max(map(len, text.splitlines())) <= width
    for word in ("exact_match", "verdict", "0.267", "McNemar", "Holm's"):
        assert word in text
    assert "no evidence" in text


def test_hostile_answers_are_shown_as_text(tmp_path):
    items = compared_runs.items(40, 0.5, 1)
    nasty = [replace(one, answer="[red]x[/red]\x1b[2J") for one in items]
    compared_runs.write(tmp_path / "one", [{"desk": items}, {"desk": items}])
    compared_runs.write(tmp_path / "two", [{"desk": items}, {"desk": nasty}])
    text = shown(made(tmp_path, "one", "two"), 100)
    assert "[red]x[/red]␛[2J" in text
    assert "\x1b" not in text


def test_the_comparison_is_plain_data(folder):
    document = json.loads(json.dumps(made(folder, "weak", "short").to_json(), allow_nan=False))
    assert document["baseline"] == 0
    assert document["pairs"][0]["dropped"] == {"only in weak": 10}
    assert document["pairs"][0]["difference"]["n"] == 50
    assert document["items"][0]["second"]["answer"]
    assert document["runs"][0]["files"] == "folder"


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_json_and_writes_a_page(folder, tmp_path, capsys):
    page = tmp_path / "page.html"
    runs = [str(folder / "weak"), str(folder / "strong")]
    assert main.main(["compare", *runs, "--json", "--html", str(page), "--items", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["items"]) == 2
    text = page.read_text(encoding="utf-8")
    for one in document["pairs"]:
        assert f'value="{one["difference"]["value"]}"' in text, "the page's numbers are those of the JSON"
    for item in document["items"]:
        assert html.escape(item["prompt"]) in text
        assert html.escape(item["second"]["answer"]) in text
    assert text.index("weak") < text.index("strong"), "the baseline stands first"


def test_a_page_that_cannot_be_written_is_an_error_with_a_remedy(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert main.main(["compare", str(folder / "weak"), "--html", str(tmp_path / "file" / "x.html")]) == 2
    said = capsys.readouterr().err
    assert "x.html" in said
    assert "cannot be" in said


def test_comparing_folders_imports_neither_torch_nor_mlflow(folder):
    script = (
        "import sys; from harness.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, [n for n in ('torch', 'mlflow', 'transformers', 'datasets') if n in sys.modules])"
    )
    arguments = ["compare", str(folder / "weak"), str(folder / "strong")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert done.stderr == ""
