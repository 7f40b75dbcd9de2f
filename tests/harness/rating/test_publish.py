"""Ratings in the report, in Markdown, in a comparison, in MLflow, and by the command."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from rich.console import Console
from support import example_run

from harness.cli import main, rate
from harness.comparison import compare, html_page, table_export
from harness.errors import HarnessError
from harness.rating.rated_answers import find_rated_models
from harness.rating.store import RatingStore
from harness.rating.summary import summarize_ratings
from harness.rating.task import TaskRequest, open_task
from harness.registry import Registry
from harness.report.html import run_files, write
from harness.report.markdown import format_run_markdown
from harness.runner.publish_ratings import publish_ratings
from harness.terminal.comparison_table import format_comparison
from harness.tracking import mlflow_store, rating_upload
from harness.tracking.tracker import MlflowTracker


def publish(task, store):
    warnings = []
    publish_ratings(task, store, summarize_ratings(task, store), None, warnings.append)
    assert warnings == []


@pytest.mark.slow
def test_the_report_and_its_markdown_show_the_ratings(scores_task, rate_all):
    publish(scores_task, rate_all(scores_task, "<b>alice</b>", lambda showing, dimension: 4))
    folder = scores_task.models[0].folder
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h2>Human ratings</h2>" in page
    assert "Completeness" in page
    assert "&lt;b&gt;alice&lt;/b&gt;" in page
    text = format_run_markdown(run_files.load_run_files(folder))
    assert "#### Human ratings" in text
    assert "| Relevance |" in text


@pytest.mark.slow
def test_a_damaged_summary_does_not_prevent_the_report(scores_task, rate_all):
    publish(scores_task, rate_all(scores_task, "alice", lambda *_: 4))
    (scores_task.folder / "summary.json").write_text("{}")
    page = write.write_run_page(scores_task.models[0].folder).read_text(encoding="utf-8")
    assert "The ratings cannot be read" in page


@pytest.mark.slow
def test_a_comparison_shows_means_with_paired_differences_and_the_ratings_side_by_side(write_run, rate_all, tmp_path):
    folders = [write_run("first"), write_run("second")]
    for folder, values in zip(folders, ((3, 4), (4, 5)), strict=True):
        task = open_task(find_rated_models([folder], with_base=False), TaskRequest(items=40))
        order = {item.key: index % 2 for index, item in enumerate(task.items)}
        publish(task, rate_all(task, "alice", lambda showing, _, v=values, o=order: v[o[showing.item.key]]))
    task = open_task(find_rated_models(folders, with_base=False), TaskRequest(items=40))
    publish(task, rate_all(task, "bob", lambda showing, _: 1 if showing.left else 5))
    comparison = compare.compare_runs([str(folder) for folder in folders], registry=Registry(), items=0)
    means, pair = comparison.ratings
    assert means.tables[0].rows[1] == [
        "Relevance",
        "second",
        "4.50 [4.34, 4.66]",
        "40",
        "+1.00 [+1.00, +1.00]",
        "better",
    ]
    assert pair.title == "Human comparison: second against first"
    stream = io.StringIO()
    Console(file=stream, width=100, color_system=None).print(format_comparison(comparison))
    file = html_page.write_comparison_html(comparison, tmp_path / "comparison.html")
    for text in (stream.getvalue(), file.read_text(encoding="utf-8"), table_export.format_markdown(comparison)):
        assert "items won by second" in text
    assert json.loads(json.dumps(comparison.to_json()))["ratings"][1]["title"] == pair.title


@pytest.fixture
def tracked_task(write_run, tmp_path):
    """A task of a run that is tracked in MLflow."""
    folder = write_run()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MlflowTracker({"enabled": True, "experiment": "desk", "uri": uri}, "mixed-sft", pytest.fail)
    example_run.feed(tracker, folder)
    assert tracker.run_id is not None
    return open_task(find_rated_models([folder], with_base=False), TaskRequest(items=3)), uri, tracker.run_id


@pytest.mark.slow
def test_mlflow_gets_human_feedback_metrics_and_files_and_nothing_twice(tracked_task, rate_all):
    task, uri, run_id = tracked_task
    store = rate_all(task, "alice", lambda showing, dimension: 4)
    store.append("alice", "comment", item=task.items[0].key, repeat=False, comment="too long")
    for _ in range(2):
        publish(task, store)
    client = mlflow_store.open_store(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ratings/scores/relevance"] == 4
    files = {file.path for file in client.list_artifacts(run_id, "ratings/scores")}
    assert {f"ratings/scores/{name}" for name in ("task.json", "summary.json", "ratings-alice.jsonl")} <= files
    traces = client.search_traces(locations=[run.info.experiment_id])
    assert len(traces) == 3
    feedback = [each for trace in traces for each in trace.info.assessments]
    assert len(feedback) == 15
    assert {(each.source.source_type, each.source.source_id, each.value) for each in feedback} == {
        ("HUMAN", "alice", 4)
    }
    assert {each.rationale for each in feedback} == {None, "too long"}


@pytest.mark.slow
def test_a_store_that_fails_is_a_warning_with_the_command_to_repeat(tracked_task, rate_all, monkeypatch):
    task, _, _ = tracked_task
    monkeypatch.setattr(rating_upload, "log_ratings", lambda *_: 1 / 0)
    store, warnings = rate_all(task, "alice", lambda *_: 4), []
    publish_ratings(task, store, summarize_ratings(task, store), None, warnings.append)
    (warning,) = warnings
    assert "ZeroDivisionError" in warning
    assert f"harness track {task.models[0].folder}" in warning
    assert (task.folder / "summary.json").is_file()


@pytest.mark.slow
def test_the_command_prints_results_and_exchanges_files(write_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    runs = [str(write_run("first")), str(write_run("second"))]
    tasks = tmp_path / "tasks.json"
    assert main.main(["rate", *runs, "--items", "30", "--label-studio", str(tasks)]) == 0
    assert len(json.loads(tasks.read_text())) == 30
    assert (tmp_path / "tasks.json.xml").is_file()
    exported = [
        {
            **task,
            "annotations": [{"completed_by": 1, "result": [{"from_name": "preference", "value": {"choices": ["3"]}}]}],
        }
        for task in json.loads(tasks.read_text())
    ]
    tasks.write_text(json.dumps(exported))
    capsys.readouterr()
    assert main.main(["rate", *runs, "--import", str(tasks), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparison"]["ties"] == 30
    assert main.main(["rate", *runs, "--csv", "-"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 31


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["first", "second", "--base"], "give one or two runs"),
        (["first", "first"], "is given twice"),
        (["first", "--rubric", "none.json"], "the rubric cannot be read"),
        (["nowhere"], "there is no such run"),
        (["first", "--items", "0"], "below 1"),
    ],
)
def test_bad_input_is_one_line(write_run, capsys, monkeypatch, arguments, message):
    folder = write_run("first")
    write_run("second")
    monkeypatch.chdir(folder.parent)
    try:
        code = main.main(["rate", *arguments, "--results"])
    except SystemExit as error:
        code = error.code
    assert code == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured


@pytest.mark.slow
def test_another_version_of_the_ratings_is_a_correction_in_mlflow(tracked_task, rate_all):
    task, uri, run_id = tracked_task
    publish(task, rate_all(task, "alice", lambda *_: 4))
    publish(task, rate_all(task, "alice", lambda *_: 5))
    client = mlflow_store.open_store(uri)
    traces = client.search_traces(locations=[client.get_run(run_id).info.experiment_id])
    valid = [each for trace in traces for each in trace.info.assessments if each.valid]
    assert {each.value for each in valid} == {5}
    assert RatingStore(task).raters() == ["alice"]


@pytest.mark.parametrize("name", ["../other", "a/b", "..", "", ".hidden", "a\nb", "x" * 101, "/tmp/x"])
def test_a_name_of_a_task_is_no_path(write_run, name):
    folder = write_run()
    with pytest.raises(HarnessError, match=r"--name: .* is not the name of a task"):
        open_task(find_rated_models([folder], with_base=False), TaskRequest(name=name))
    assert not (folder / "ratings").exists()


@pytest.mark.slow
def test_a_summary_of_another_task_is_not_replaced(write_run, rate_all):
    first, second = write_run("first"), write_run("second")
    models = find_rated_models([first, second], with_base=False)
    own = open_task(find_rated_models([second], with_base=False), TaskRequest(name="round-2"))
    with pytest.raises(HarnessError, match=r"round-2: has the ratings of another task.*another --name"):
        open_task(models, TaskRequest(name="round-2"))
    publish(own, rate_all(own, "alice", lambda *_: 4))
    before = (own.folder / "summary.json").read_bytes()
    (own.folder / "task.json").unlink()
    with pytest.raises(HarnessError, match="has the ratings of another task"):
        open_task(models, TaskRequest(name="round-2"))
    assert (own.folder / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_a_swapped_comparison_does_not_replace_the_copy_of_the_first(write_run, rate_all):
    first, second = write_run("first"), write_run("second")
    task = open_task(find_rated_models([first, second], with_base=False), TaskRequest())
    publish(task, rate_all(task, "alice", lambda *_: 4))
    assert (second / "ratings/pair-first/summary.json").is_file()
    with pytest.raises(HarnessError, match="pair-first: has the ratings of another task"):
        open_task(find_rated_models([second, first], with_base=False), TaskRequest())
    swapped = open_task(find_rated_models([second, first], with_base=False), TaskRequest(name="swapped"))
    publish(swapped, rate_all(swapped, "bob", lambda *_: 4))
    assert open_task(find_rated_models([first, second], with_base=False), TaskRequest()).digest == task.digest


def test_the_token_is_not_on_the_command_line_of_the_browser(write_run, capsys, monkeypatch):
    opened = []

    def serve(session, access, port, on_start):
        on_start(8123)
        page = Path(unquote(urlsplit(opened[0]).path))
        opened.append((access.token, page, page.read_text(), stat.S_IMODE(page.stat().st_mode)))
        raise KeyboardInterrupt

    monkeypatch.setattr(rate, "_open_browser", opened.append)
    monkeypatch.setattr("harness.rating.server.serve_session", serve)
    assert main.main(["rate", str(write_run()), "--rater", "王 芳"]) == 0
    address, (token, page, text, rights) = opened
    assert token not in address
    assert f"url=http://127.0.0.1:8123/#token={token}&amp;rater=" in text
    assert rights == 0o600
    assert not page.exists(), "it is deleted with the end of the page"
    assert token in capsys.readouterr().out
