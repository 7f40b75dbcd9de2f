"""The data of the item browser: every item of both evaluations, in a form that HTML cannot change."""

from __future__ import annotations

import json

from support import example_run, run_folders

from harness.report.html import item_browser, run_page
from harness.report.html.run_files import load_run_files


def test_each_item_has_both_answers_scores_and_flags(tmp_path):
    browser = item_browser.build_item_browser(load_run_files(run_folders.write_run(tmp_path / "run")))
    data = json.loads(browser.json)
    assert data["suites"] == [{"name": name, "score": "rougeL", "higher": True} for name, _ in example_run.SUITES]
    assert (browser.shown, browser.total, len(data["items"])) == (80, 80, 80)
    assert data["items"][3] == [0, "question 3?", "reference 3", "stage 0 says 3", "stage 1 says 3", 0.23, 0.43, 0]


def test_hostile_text_cannot_leave_its_element(tmp_path):
    run = run_folders.write_run(tmp_path / "run", text=lambda text: run_folders.HOSTILE_TEXT + text)
    text = item_browser.build_item_browser(load_run_files(run)).json
    assert not set("<>&") & set(text)
    first = json.loads(text)["items"][0]
    assert first[1].startswith("</script><script>alert(1)</script>")
    assert "\u202e" not in first[1]


def test_items_without_scores_or_files_are_shown_as_far_as_possible(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    for file in folder.glob("predictions/helpdesk-*.jsonl"):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [json.dumps({key: value for key, value in record.items() if key != "scores"}) for record in records]
        file.write_text("".join(f"{line}\n" for line in lines))
    (folder / "predictions" / "general-stage0.jsonl").unlink()
    run = load_run_files(folder)
    browser = item_browser.build_item_browser(run)
    assert (browser.suites, browser.shown, browser.has_scores) == (("helpdesk",), 40, False)
    text, _ = run_page.build_run_page(run)
    assert '<option value="worse">' not in text
    for file in folder.glob("predictions/*"):
        file.unlink()
    assert item_browser.build_item_browser(load_run_files(folder)) is None


def test_a_long_run_shows_a_part_of_its_items(tmp_path, monkeypatch):
    monkeypatch.setattr(item_browser, "MAX_ITEMS", 50)
    run = load_run_files(run_folders.write_run(tmp_path / "run"))
    browser = item_browser.build_item_browser(run)
    assert (browser.shown, browser.total) == (50, 80)
    assert "The first 50 of 80 items" in run_page.build_run_page(run)[0]
