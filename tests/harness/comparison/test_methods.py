"""Runs that differ in their seed only are compared as methods, in the terminal and as tables."""

from __future__ import annotations

import csv
import io
import json
import statistics

import pytest
from rich.console import Console
from support import compared_runs

from harness.api.results import ComparisonResult
from harness.comparison import compare, html_page, table_export
from harness.errors import HarnessError
from harness.terminal.comparison_table import format_comparison

METRICS = {"exact_match": {}, "chrf": {}}
SKILLS = {"naive": 0.2, "ewc": 0.5, "replay_mix": 0.9}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """An experiment of three methods and three seeds."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    arms = {}
    for rate, (method, skill) in enumerate(SKILLS.items(), start=1):
        for seed in (0, 1, 2):
            document = compared_runs.run_spec(metrics=METRICS, seed=seed, train={"learning_rate": rate}, name=method)
            run = folder / "arms" / f"{method},seed={seed}"
            compared_runs.write_finished_run(run, skill, f"{method} {seed}", document=document, predictions=False)
            arms.setdefault(method, {})[str(seed)] = str(run)
    (folder / "arms.json").write_text(json.dumps({"arms": arms, "baseline": "naive"}))
    return folder


def compare_folders(*folders, **options):
    return compare.compare_runs([str(folder) for folder in folders], registry=compared_runs.REGISTRY, **options)


def stored_values(sweep, method, score):
    documents = [json.loads((sweep / f"arms/{method},seed={seed}/scores.json").read_text()) for seed in (0, 1, 2)]
    return [
        next(each["value"] for each in document["stages"][-1]["suites"]["desk"]["scores"] if each["name"] == score)
        for document in documents
    ]


def test_an_experiment_with_seeds_is_one_row_per_method(sweep):
    comparison = compare_folders(sweep)
    assert comparison.methods.methods == dict.fromkeys(SKILLS, (0, 1, 2))
    assert comparison.methods.baseline == "naive"
    assert comparison.pairs == ()
    assert comparison.differences.keys() == {"train.learning_rate"}
    rows = {row["method"]: row for row in table_export.pair_records(comparison) if row["score"] == "exact_match"}
    for method, row in rows.items():
        values = stored_values(sweep, method, "exact_match")
        assert row["after"] == pytest.approx(statistics.mean(values))
        assert row["after_sd"] == pytest.approx(statistics.stdev(values))
        assert row["after_low"] < min(values)
    difference = rows["replay_mix"]["after"] - rows["naive"]["after"]
    assert rows["replay_mix"]["difference"] == pytest.approx(difference)
    assert rows["replay_mix"]["verdict"] == "better"
    assert rows["naive"]["difference"] is None


def test_single_runs_with_different_seeds_are_grouped_by_their_spec(sweep, tmp_path):
    folders = [sweep / f"arms/{method},seed={seed}" for seed in (0, 1) for method in ("ewc", "naive")]
    comparison = compare_folders(*folders, baseline="naive")
    assert comparison.methods.methods == {"naive": (0, 1), "ewc": (0, 1)}
    two = compare_folders(sweep / "arms/ewc,seed=0", sweep / "arms/ewc,seed=1")
    assert two.methods is None, "two runs of one method are compared as runs"
    assert two.pairs
    assert compare_folders(sweep / "arms/ewc,seed=0", sweep / "arms/naive,seed=0").methods is None


def copy_run(run, copy, **changes):
    """Copy a run, with other values in its spec."""
    copy.mkdir(parents=True)
    for file in run.glob("*.json"):
        (copy / file.name).write_text(file.read_text())
    document = json.loads((copy / "spec.json").read_text())
    (copy / "spec.json").write_text(json.dumps({**document, **changes}))
    return copy


def test_of_runs_with_one_seed_twice_the_second_is_left_out_with_a_note(sweep, tmp_path):
    copy = copy_run(sweep / "arms/ewc,seed=0", tmp_path / "ewc again")
    methods = compare_folders(sweep, copy).methods
    assert methods.methods == dict.fromkeys(SKILLS, (0, 1, 2))
    assert methods.notes == ("ewc again is not compared: ewc,seed=0 has the same settings and seed, 0",)
    assert methods.scores == compare_folders(sweep).methods.scores


def test_methods_with_the_same_name_keep_their_runs_and_get_names_that_say_what_differs(tmp_path, sweep):
    folders = []
    for rate in (0.5, 0.25):
        for seed in (0, 1):
            run = sweep / f"arms/{'ewc' if rate == 0.5 else 'naive'},seed={seed}"
            changes = {"name": "tickets", "seed": seed, "train": {"learning_rate": rate}}
            folders.append(copy_run(run, tmp_path / f"tickets-{rate}-{seed}", **changes))
    # the same name as a run that exists
    folders.append(copy_run(sweep / "arms/naive,seed=0", tmp_path / "x/tickets (learning_rate=0.5)"))
    methods = compare_folders(*folders).methods.methods
    assert [*methods.values()] == [(0, 1), (0, 1), (0,)]
    assert [*methods][:2] == ["tickets (learning_rate=0.5)", "tickets (learning_rate=0.25)"]
    assert len(set(methods)) == 3


def test_a_perplexity_and_its_nll_are_one_comparison(tmp_path):
    folders = []
    for method, skill in (("one", 0.2), ("two", 0.8)):
        for seed in (0, 1):
            metrics = {"rouge": {}, "response_perplexity": {}}
            document = compared_runs.run_spec(metrics=metrics, seed=seed, name=method, description=method)
            run = tmp_path / f"{method},seed={seed}"
            compared_runs.write_finished_run(run, skill, f"{method} {seed}", document=document, predictions=False)
            folders.append(run)
    methods = compare_folders(*folders).methods
    names = {score.score for score in methods.scores}
    assert {"response_perplexity", "response_nll"} <= names
    assert methods.num_comparisons == len(names) - 1


def test_items_of_methods_are_refused_with_the_command_that_shows_them(sweep):
    remedy = r"compare two runs: harness compare .*naive,seed=0'? .*,seed=\d'? --items 5$"
    with pytest.raises(HarnessError, match=remedy):
        compare_folders(sweep, items=5)
    assert compare_folders(sweep, items=0).methods is not None


def test_tables_have_mean_deviation_difference_and_verdict(sweep):
    comparison = compare_folders(sweep, score="desk/exact_match")
    markdown = table_export.format_markdown(comparison)
    header, _, naive, _, replay = markdown.splitlines()[:5]
    assert header.split("|")[1].strip() == "method"
    assert naive.startswith("| naive (3 seeds) |")
    assert " ± " in replay
    assert "▲" in replay
    latex = table_export.format_latex(comparison)
    assert r"replay\_mix (3 seeds) & " in latex
    assert r"$\pm$" in latex
    assert r"method & value & difference [95\%] \\" in latex
    assert latex.isascii()
    rows = list(csv.DictReader(io.StringIO(table_export.format_csv(comparison))))
    assert len(rows) == len(SKILLS) * 2
    assert {row["seeds"] for row in rows} == {"3"}
    frame = ComparisonResult(comparison).scores
    assert tuple(frame.columns) == table_export.METHOD_COLUMNS
    assert len(json.loads(json.dumps(comparison.to_json()))["methods"]["scores"]) == len(rows)


def test_a_terminal_of_80_columns_shows_each_method_without_breaking_names(sweep):
    stream = io.StringIO()
    Console(file=stream, width=80).print(format_comparison(compare_folders(sweep)))
    text = stream.getvalue()
    lines = text.splitlines()
    assert sum(line.startswith("replay_mix ") for line in lines) == 2, "one row for each score"
    assert "desk/exact_match" in {line.strip() for line in lines}
    assert "adjusted for 4 comparisons" in " ".join(text.split())


def test_the_page_of_methods_is_refused_with_what_to_use(sweep, tmp_path):
    with pytest.raises(HarnessError, match="use --markdown or --latex"):
        html_page.write_comparison_html(compare_folders(sweep), tmp_path / "page.html")


def test_an_unknown_score_is_refused(sweep):
    with pytest.raises(HarnessError, match="there are: desk/exact_match, desk/chrf"):
        compare_folders(sweep, score="desk/bleu")
