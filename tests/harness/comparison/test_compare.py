"""Comparison of tracked runs, loaded from a real MLflow store."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from support import compared_runs, example_run

from harness.comparison import compare, run_summary
from harness.errors import HarnessError
from harness.terminal.comparison_table import format_comparison
from harness.tracking import mlflow_entries, mlflow_store
from harness.tracking.tracker import MlflowTracker


@pytest.fixture(scope="module")
def tracked_runs(tmp_path_factory):
    """Three runs of one experiment, the last one failed, and a run of another experiment with the name of the first."""
    folder = tmp_path_factory.mktemp("compared")
    uri = f"sqlite:///{folder}/mlflow.db"
    ids = {}

    def track_run(where, experiment="sweep", **options):
        tracker = MlflowTracker({"enabled": True, "experiment": experiment, "uri": uri}, "mixed-sft", pytest.fail)
        example_run.feed(tracker, folder / where, **options)
        ids[where] = tracker.run_id

    track_run("runs/mixed-sft-a1")
    track_run("runs/mixed-sft-a2", settings={"train": {"learning_rate": 1e-5, "steps": 9}, "mitigations": {}})
    track_run("runs/mixed-sft-a3", fail=True)
    track_run("again/mixed-sft-a1", experiment="other")
    return SimpleNamespace(uri=uri, folder=folder, ids=ids)


def render_table(result, width=100):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, highlight=False).print(format_comparison(result))
    return stream.getvalue()


@pytest.mark.slow
def test_experiment_returns_its_parent_runs_oldest_first(tracked_runs):
    comparison = compare.compare_runs([], "sweep", tracked_runs.uri)
    assert [run.name for run in comparison.runs] == ["mixed-sft-a1", "mixed-sft-a2", "mixed-sft-a3"]
    assert [run.status for run in comparison.runs] == ["finished", "finished", "failed"]
    assert [run.learning_rate for run in comparison.runs] == ["0.0002", "1e-05", "0.0002"]
    assert [run.mitigations for run in comparison.runs] == ["lora, mixing", "", "lora, mixing"]
    assert {run.mode for run in comparison.runs} == {"mixed"}
    assert all(run.seconds is not None and run.seconds >= 0 for run in comparison.runs)


def test_scores_are_those_of_the_last_stage_with_delta_and_verdict(tracked_runs):
    first, _, failed = compare.compare_runs([], "sweep", tracked_runs.uri).runs
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


def test_runs_are_found_by_id_name_or_folder_in_the_given_order(tracked_runs, monkeypatch):
    folder = tracked_runs.folder / "runs" / "mixed-sft-a3"
    names = [str(folder), "mixed-sft-a2", tracked_runs.ids["runs/mixed-sft-a1"], "mixed-sft-a2"]
    comparison = compare.compare_runs(names, None, tracked_runs.uri)
    assert [run.name for run in comparison.runs] == ["mixed-sft-a3", "mixed-sft-a2", "mixed-sft-a1"]
    monkeypatch.chdir(folder)
    assert compare.compare_runs(["."], "sweep", tracked_runs.uri).runs[0].name == "mixed-sft-a3"


@pytest.mark.slow
def test_runs_below_the_working_folder_are_found_by_the_beginning_of_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items = compared_runs.build_items(3, 0.5, 0)
    for name in ("first-20260101-a1", "second-20260101-a2", "second-20260102-a3", "sweep-20260101-a4"):
        compared_runs.write_run(tmp_path / "runs" / name, [{"desk": items}, {"desk": items}])
    compared_runs.write_run(tmp_path / "runs" / "sweep-20260101-a4/arms/naive", [{"desk": items}, {"desk": items}])
    names = ["first", "second-20260102", "sweep/naive"]
    comparison = compare.compare_runs(names, uri="sqlite:///missing.db", registry=compared_runs.REGISTRY)
    assert [Path(run.folder).name for run in comparison.runs] == ["first-20260101-a1", "second-20260102-a3", "naive"]
    with pytest.raises(HarnessError) as error:
        compare.compare_runs(["second"], uri="sqlite:///missing.db")
    assert str(error.value).startswith("run second: 2 runs have a name that begins with 'second'; name one of them: ")
    with pytest.raises(HarnessError, match="cannot read the tracking store"):
        compare.compare_runs(["third"], uri="sqlite:///missing.db")


def test_folder_means_its_own_run_even_if_another_run_has_its_name(tracked_runs):
    for where in ("runs/mixed-sft-a1", "again/mixed-sft-a1"):
        comparison = compare.compare_runs([str(tracked_runs.folder / where)], None, tracked_runs.uri)
        assert [run.run_id for run in comparison.runs] == [tracked_runs.ids[where]]


def test_ambiguous_name_is_an_error_that_lists_the_ids(tracked_runs):
    with pytest.raises(HarnessError) as caught:
        compare.compare_runs(["mixed-sft-a1"], None, tracked_runs.uri)
    assert caught.value.what == "2 runs are called 'mixed-sft-a1'"
    assert tracked_runs.ids["runs/mixed-sft-a1"] in caught.value.hint
    assert (
        compare.compare_runs(["mixed-sft-a1"], "sweep", tracked_runs.uri).runs[0].run_id
        == tracked_runs.ids["runs/mixed-sft-a1"]
    )


def test_differences_contain_exactly_the_spec_keys_that_differ(tracked_runs):
    comparison = compare.compare_runs(["mixed-sft-a1", "mixed-sft-a2"], "sweep", tracked_runs.uri)
    assert comparison.differences == {
        "mitigations": (None, "{}"),
        "mitigations.lora.rank": ("16", None),
        "mitigations.mixing.share": ("0.1", None),
        "train.learning_rate": ("0.0002", "1e-05"),
        "train.steps": (None, "9"),
    }
    same = compare.compare_runs(["mixed-sft-a1", "mixed-sft-a3"], "sweep", tracked_runs.uri)
    assert same.differences == {}
    assert "the specs do not differ" in render_table(same)


@pytest.mark.slow
def test_plugins_whose_version_or_code_differs_are_among_the_differences(tmp_path):
    plugins = [
        {"harness-a": {"version": "1", "digest": "0" * 64}, "harness-b": {"version": "1", "digest": "0" * 64}},
        {"harness-a": {"version": "1", "digest": "0" * 64}, "harness-b": {"version": "1", "digest": "1" * 64}},
        {"harness-a": {"version": "1", "digest": "0" * 64}},
    ]
    for number, each in enumerate(plugins):
        items = compared_runs.build_items(3, 0.5, 0)
        compared_runs.write_run(tmp_path / str(number), [{"desk": items}, {"desk": items}])
        (tmp_path / str(number) / "environment.json").write_text(json.dumps({"plugins": each}))
    comparison = compare.compare_runs([str(tmp_path / str(number)) for number in range(3)])
    assert comparison.differences == {"plugin harness-b": (f"1 ({'0' * 12})", f"1 ({'1' * 12})", None)}


def test_the_tag_of_mlflow_has_the_versions_of_plugins():
    plugins = {"harness-a": {"version": "1.0", "digest": "a" * 64}, "harness-b": {"version": None, "digest": "b" * 64}}
    tag = mlflow_entries.build_run_tags({}, {"plugins": plugins})["harness.plugins"]
    assert run_summary.plugin_versions_from_tag(tag) == run_summary.plugin_versions({"plugins": plugins})
    assert run_summary.plugin_versions_from_tag("") == {}


@pytest.mark.parametrize("width", [80, 140])
def test_table_contains_every_number_at_any_width(tracked_runs, width):
    text = render_table(compare.compare_runs([], "sweep", tracked_runs.uri), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for text_part in (
        "0.420 +0.200 ✓",
        "✓",
        "·",
        "(0.220)",
        "mixed: lora, mixing",
        "mixed: no mitigation",
        "1e-05",
        "failed",
    ):
        assert text_part in text
    assert text.index("helpdesk") < text.index("general")


def test_single_run_is_shown_without_differences(tracked_runs):
    text = render_table(compare.compare_runs(["mixed-sft-a2"], None, tracked_runs.uri))
    assert "differ in" not in text
    assert "specs do not" not in text


def test_hostile_values_of_a_store_are_shown_as_text(tracked_runs):
    run = run_summary.RunSummary("id", "[red]x[/red]\x1b[2J", "running", "[b]", "", "", None, {}, {})
    other = run_summary.RunSummary(
        "id2", "y", "running", "", "", "", None, {"[i]/\x1b[31m": run_summary.FinalScore(1.0, 1.0, None)}, {}
    )
    text = render_table(compare.Comparison("uri", (run, other), {"train.[red]x": ("\x1b[31m", "[/]")}))
    assert "[red]x[/red]␛[2J" in text
    assert "␛[31m" in text
    assert "\x1b" not in text


def test_runs_without_a_local_folder_are_compared_by_their_artifacts(tracked_runs):
    comparison = compare.compare_runs([], "sweep", tracked_runs.uri)
    assert [run.files for run in comparison.runs] == ["artifacts", "artifacts", ""]
    assert {(score_pair.run, score_pair.suite) for score_pair in comparison.pairs} == {(1, "helpdesk"), (1, "general")}
    assert {score_pair.n for score_pair in comparison.pairs} == {40}
    assert [(entry.run, entry.why) for entry in comparison.not_comparable] == [(2, "the run is not finished")]


def test_run_without_artifacts_is_shown_with_the_reason_for_no_comparison(tracked_runs, tmp_path):
    client = mlflow_store.open_store(tracked_runs.uri)
    experiment = client.get_experiment_by_name("other").experiment_id
    run = client.create_run(experiment, run_name="bare", tags={"harness.id": "bare", "harness.folder": "/gone"})
    client.log_metric(run.info.run_id, "helpdesk/rougeL", 0.5, step=1)
    client.set_terminated(run.info.run_id)
    comparison = compare.compare_runs([tracked_runs.ids["runs/mixed-sft-a1"], "bare"], None, tracked_runs.uri)
    assert comparison.runs[1].scores["helpdesk/rougeL"].value == 0.5
    assert comparison.pairs == ()
    (entry,) = comparison.not_comparable
    assert entry.why == "its artifacts have no spec.json and no scores.json"
    text = render_table(comparison)
    assert "(0.500)" in text
    assert "run 2 not compared: its artifacts have no spec.json and no scores.json" in text


def test_json_contains_what_the_table_shows(tracked_runs):
    comparison = json.loads(json.dumps(compare.compare_runs([], "sweep", tracked_runs.uri).to_json(), allow_nan=False))
    assert comparison["runs"][0]["scores"]["helpdesk/rougeL"]["delta"] == pytest.approx(0.2)
    assert comparison["runs"][2]["scores"]["helpdesk/rougeL"]["delta"] is None
    assert comparison["differences"]["train.learning_rate"] == ["0.0002", "1e-05", "0.0002"]


def test_unknown_run_or_experiment_is_an_error_that_lists_the_available_ones(tracked_runs):
    with pytest.raises(HarnessError) as caught:
        compare.compare_runs(["mixed-sft-zz"], "sweep", tracked_runs.uri)
    assert str(caught.value) == (
        f"{tracked_runs.uri}: there is no run 'mixed-sft-zz'; there are: mixed-sft-a3, mixed-sft-a2, mixed-sft-a1"
    )
    with pytest.raises(HarnessError, match="there is no experiment 'swep'; there are: Default, other, sweep"):
        compare.compare_runs([], "swep", tracked_runs.uri)
    with pytest.raises(HarnessError, match="the experiment 'Default' holds no run of harness; run a spec first"):
        compare.compare_runs([], "Default", tracked_runs.uri)


def test_folder_of_a_run_in_another_store_is_an_error(tracked_runs, tmp_path):
    with pytest.raises(HarnessError, match="there is no run"):
        compare.compare_runs([str(tmp_path)], None, tracked_runs.uri)
    (tmp_path / "mlflow.json").write_text('{"uri": "http://there", "experiment": "x", "run_id": "0" }')
    with pytest.raises(HarnessError, match="is not in this store; it was tracked at http://there"):
        compare.compare_runs([str(tmp_path)], None, tracked_runs.uri)


def test_comparison_without_runs_is_an_error():
    with pytest.raises(HarnessError, match="no run is given; give run ids, names or folders, or --experiment NAME"):
        compare.compare_runs([], None, None)


def test_missing_store_is_an_error_and_is_not_created(tmp_path, monkeypatch):
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


@pytest.mark.slow
def test_compare_imports_mlflow_only_when_used_and_never_torch(tracked_runs):
    script = (
        "import sys; from harness.comparison import compare; print('mlflow' in sys.modules, 'torch' in sys.modules);"
        f"compare.compare_runs([], 'sweep', {tracked_runs.uri!r});"
        "print('mlflow' in sys.modules, 'torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["False", "False", "True", "False"]
    assert process.stderr == ""
