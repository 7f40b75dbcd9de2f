"""Tracked runs beside each other, read back from a real store."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from support import example_run

from harness.comparison import compare, run_summary
from harness.errors import HarnessError
from harness.terminal.comparison_table import format_comparison
from harness.tracking import mlflow_store
from harness.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Three runs of one experiment, the last of them failed, and one of another that has the first one's name."""
    folder = tmp_path_factory.mktemp("compared")
    uri = f"sqlite:///{folder}/mlflow.db"
    ids = {}

    def run(where, experiment="sweep", **options):
        tracker = Tracker({"enabled": True, "experiment": experiment, "uri": uri}, "mixed-sft", pytest.fail)
        example_run.feed(tracker, folder / where, **options)
        ids[where] = tracker.run_id

    run("runs/mixed-sft-a1")
    run("runs/mixed-sft-a2", settings={"train": {"learning_rate": 1e-5, "steps": 9}, "mitigations": {}})
    run("runs/mixed-sft-a3", fail=True)
    run("again/mixed-sft-a1", experiment="other")
    return SimpleNamespace(uri=uri, folder=folder, ids=ids)


def shown(comparison, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(format_comparison(comparison))
    return stream.getvalue()


def test_an_experiment_gives_its_parent_runs_in_the_order_in_which_they_ran(tracked):
    made = compare.compare_runs([], "sweep", tracked.uri)
    assert [run.name for run in made.runs] == ["mixed-sft-a1", "mixed-sft-a2", "mixed-sft-a3"]
    assert [run.status for run in made.runs] == ["finished", "finished", "failed"]
    assert [run.learning_rate for run in made.runs] == ["0.0002", "1e-05", "0.0002"]
    assert [run.mitigations for run in made.runs] == ["lora, mixing", "", "lora, mixing"]
    assert {run.mode for run in made.runs} == {"mixed"}
    assert all(run.seconds is not None and run.seconds >= 0 for run in made.runs)


def test_scores_are_the_last_stages_with_their_difference_and_the_reports_verdict(tracked):
    first, _, failed = compare.compare_runs([], "sweep", tracked.uri).runs
    assert list(first.scores) == [
        "helpdesk/rougeL",
        "helpdesk/response_perplexity",
        "general/rougeL",
        "general/response_perplexity",
    ]
    rouge = first.scores["helpdesk/rougeL"]
    assert (rouge.value, rouge.delta) == (pytest.approx(0.42), pytest.approx(0.2))
    assert rouge.verdict == "better"
    assert first.scores["helpdesk/response_perplexity"].delta < 0
    assert first.scores["helpdesk/response_perplexity"].verdict == "better"
    assert first.scores["general/rougeL"].verdict == "no evidence"
    assert failed.scores["helpdesk/rougeL"] == run_summary.FinalScore(pytest.approx(0.22), None, None)


def test_runs_are_named_by_id_name_or_folder_and_stand_in_the_order_given(tracked, monkeypatch):
    folder = tracked.folder / "runs" / "mixed-sft-a3"
    names = [str(folder), "mixed-sft-a2", tracked.ids["runs/mixed-sft-a1"], "mixed-sft-a2"]
    made = compare.compare_runs(names, None, tracked.uri)
    assert [run.name for run in made.runs] == ["mixed-sft-a3", "mixed-sft-a2", "mixed-sft-a1"]
    monkeypatch.chdir(folder)
    assert compare.compare_runs(["."], "sweep", tracked.uri).runs[0].name == "mixed-sft-a3"


def test_a_folder_is_its_own_run_though_another_has_its_name(tracked):
    for where in ("runs/mixed-sft-a1", "again/mixed-sft-a1"):
        made = compare.compare_runs([str(tracked.folder / where)], None, tracked.uri)
        assert [run.run_id for run in made.runs] == [tracked.ids[where]]


def test_a_name_that_two_runs_have_is_refused_with_their_ids(tracked):
    with pytest.raises(HarnessError) as caught:
        compare.compare_runs(["mixed-sft-a1"], None, tracked.uri)
    assert caught.value.what == "2 runs are called 'mixed-sft-a1'"
    assert tracked.ids["runs/mixed-sft-a1"] in caught.value.hint
    assert (
        compare.compare_runs(["mixed-sft-a1"], "sweep", tracked.uri).runs[0].run_id == tracked.ids["runs/mixed-sft-a1"]
    )


def test_what_differs_in_the_specs_is_named_and_nothing_else(tracked):
    made = compare.compare_runs(["mixed-sft-a1", "mixed-sft-a2"], "sweep", tracked.uri)
    assert made.differences == {
        "mitigations": (None, "{}"),
        "mitigations.lora.rank": ("16", None),
        "mitigations.mixing.share": ("0.1", None),
        "train.learning_rate": ("0.0002", "1e-05"),
        "train.steps": (None, "9"),
    }
    same = compare.compare_runs(["mixed-sft-a1", "mixed-sft-a3"], "sweep", tracked.uri)
    assert same.differences == {}
    assert "the specs do not differ" in shown(same)


@pytest.mark.parametrize("width", [80, 140])
def test_every_figure_is_in_the_table_at_any_width(tracked, width):
    text = shown(compare.compare_runs([], "sweep", tracked.uri), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for figure in (
        "0.420 +0.200 ✓",
        "✓",
        "·",
        "(0.220)",
        "mixed: lora, mixing",
        "mixed: no mitigation",
        "1e-05",
        "failed",
    ):
        assert figure in text
    assert text.index("helpdesk") < text.index("general")


def test_one_run_alone_is_shown_without_differences(tracked):
    text = shown(compare.compare_runs(["mixed-sft-a2"], None, tracked.uri))
    assert "differ in" not in text
    assert "specs do not" not in text


def test_hostile_values_of_a_store_are_shown_as_text(tracked):
    run = run_summary.RunSummary("id", "[red]x[/red]\x1b[2J", "running", "[b]", "", "", None, {}, {})
    other = run_summary.RunSummary(
        "id2", "y", "running", "", "", "", None, {"[i]/\x1b[31m": run_summary.FinalScore(1.0, 1.0, None)}, {}
    )
    text = shown(compare.Comparison("uri", (run, other), {"train.[red]x": ("\x1b[31m", "[/]")}))
    assert "[red]x[/red]␛[2J" in text
    assert "␛[31m" in text
    assert "\x1b" not in text


def test_runs_that_are_only_in_the_store_are_compared_by_their_artifacts(tracked):
    made = compare.compare_runs([], "sweep", tracked.uri)
    assert [run.files for run in made.runs] == ["artifacts", "artifacts", ""]
    assert {(one.run, one.suite) for one in made.pairs} == {(1, "helpdesk"), (1, "general")}
    assert {one.n for one in made.pairs} == {40}
    assert [(one.run, one.why) for one in made.not_comparable] == [(2, "the run has not come to its end")]


def test_a_run_with_metrics_alone_is_shown_and_the_lack_is_said(tracked, tmp_path):
    client = mlflow_store.open_store(tracked.uri)
    experiment = client.get_experiment_by_name("other").experiment_id
    run = client.create_run(experiment, run_name="bare", tags={"harness.id": "bare", "harness.folder": "/gone"})
    client.log_metric(run.info.run_id, "helpdesk/rougeL", 0.5, step=1)
    client.set_terminated(run.info.run_id)
    made = compare.compare_runs([tracked.ids["runs/mixed-sft-a1"], "bare"], None, tracked.uri)
    assert made.runs[1].scores["helpdesk/rougeL"].value == 0.5
    assert made.pairs == ()
    (gone,) = made.not_comparable
    assert gone.why == "its artifacts have no spec.json and no scores.json"
    text = shown(made)
    assert "(0.500)" in text
    assert "run 2 not compared: its artifacts have no spec.json and no scores.json" in text


def test_json_holds_what_the_table_shows(tracked):
    made = json.loads(json.dumps(compare.compare_runs([], "sweep", tracked.uri).to_json(), allow_nan=False))
    assert made["runs"][0]["scores"]["helpdesk/rougeL"]["delta"] == pytest.approx(0.2)
    assert made["runs"][2]["scores"]["helpdesk/rougeL"]["delta"] is None
    assert made["differences"]["train.learning_rate"] == ["0.0002", "1e-05", "0.0002"]


def test_an_unknown_run_or_experiment_is_told_what_there_is(tracked):
    with pytest.raises(HarnessError) as caught:
        compare.compare_runs(["mixed-sft-zz"], "sweep", tracked.uri)
    assert str(caught.value) == (
        f"{tracked.uri}: there is no run 'mixed-sft-zz'; there are: mixed-sft-a3, mixed-sft-a2, mixed-sft-a1"
    )
    with pytest.raises(HarnessError, match="there is no experiment 'swep'; there are: Default, other, sweep"):
        compare.compare_runs([], "swep", tracked.uri)
    with pytest.raises(HarnessError, match="the experiment 'Default' holds no run of harness; run a spec first"):
        compare.compare_runs([], "Default", tracked.uri)


def test_a_folder_that_the_store_does_not_know_is_refused(tracked, tmp_path):
    with pytest.raises(HarnessError, match="there is no run"):
        compare.compare_runs([str(tmp_path)], None, tracked.uri)
    (tmp_path / "mlflow.json").write_text('{"uri": "http://there", "experiment": "x", "run_id": "0" }')
    with pytest.raises(HarnessError, match="is not here; it was tracked at http://there"):
        compare.compare_runs([str(tmp_path)], None, tracked.uri)


def test_nothing_named_is_refused():
    with pytest.raises(HarnessError, match="no run is named; give run ids, names or folders, or --experiment NAME"):
        compare.compare_runs([], None, None)


def test_a_store_that_is_not_there_is_refused_and_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(HarnessError) as caught:
        compare.compare_runs(["a"], None, None)
    assert caught.value.where == "sqlite:///mlflow.db"
    assert "there is no database" in caught.value.what
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(HarnessError) as caught:
        compare.compare_runs(["a"], None, "pigeon://me:hunter2@coop")
    assert "hunter2" not in str(caught.value)


def test_comparing_imports_no_torch_and_importing_not_even_mlflow(tracked):
    script = (
        "import sys; from harness.comparison import compare; print('mlflow' in sys.modules, 'torch' in sys.modules);"
        f"compare.compare_runs([], 'sweep', {tracked.uri!r});"
        "print('mlflow' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "False"]
    assert done.stderr == ""
