"""The summary of a run in Markdown."""

from __future__ import annotations

import json

import pytest
from support import run_folders

from harness.cli.main import main
from harness.report.html.run_files import load_run_files
from harness.report.markdown import format_run_markdown
from harness.utils.markdown import escape_markdown, markdown_table


def test_summary_has_verdict_scores_gate_and_items(tmp_path):
    gate = [run_folders.gate_condition("helpdesk/rougeL", gains_at_least=0.5)]
    folder = run_folders.write_run(tmp_path / "run", gate=gate)
    run = load_run_files(folder)
    text = format_run_markdown(run)
    first, *lines = text.splitlines()
    assert first == "### Helpdesk improved; general was kept; the gate failed."
    assert "| rougeL | ✅ better | 0.220 | 0.420 | +0.200 [+0.200, +0.200] |" in lines
    assert any(line.startswith("| helpdesk/rougeL must ") and " 0.5 | failed | 0.200 | " in line for line in lines)
    assert lines.count("</details>") == 1
    assert "- **general**: question " in text
    assert "  - reference: reference " in text


def test_hostile_text_is_shown_as_text(tmp_path):
    folder = run_folders.write_run(tmp_path / "run", text=lambda text: f"</details> | @all `x` {text}\n# title")
    text = format_run_markdown(load_run_files(folder))
    assert text.count("</details>") == 1
    assert "@all" not in text
    assert "\n# title" not in text
    assert r"\</details\> \|" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b*c", r"a\_b\*c"),
        ("<b> & |", r"\<b\> &amp; \|"),
        ("1. first\nsecond", r"1\. first second"),
        ("- x", r"\- x"),
        ("4.8 s, -1", "4.8 s, -1"),
        ("\x1b[31m", r"␛\[31m"),
    ],
)
def test_escaping(text, escaped):
    assert escape_markdown(text) == escaped


def test_a_table_is_aligned():
    assert markdown_table(["a", "b"], [["x", "1"]], numbers_from=1) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_the_command_prints_or_writes_it(tmp_path, capsys):
    folder = run_folders.write_run(tmp_path / "run")
    assert main(["report", str(folder), "--markdown", "-"]) == 0
    printed = capsys.readouterr().out
    assert main(["report", str(folder), "--markdown", str(tmp_path / "summary.md")]) == 0
    assert (tmp_path / "summary.md").read_text() == printed
    assert not (folder / "report.html").exists()
    experiment = run_folders.write_experiment(tmp_path / "sweep")
    (experiment / "spec.json").write_text("{}")
    assert main(["report", str(experiment), "--markdown", "-"]) == 0
    arms = json.loads((experiment / "arms.json").read_text())
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [point["arm"] for point in arms["points"]]
    gain = arms["points"][0]["gain"]
    assert f"{gain['value']:.3f}"[:4] in rows[0]
    assert printed.startswith("### ")
