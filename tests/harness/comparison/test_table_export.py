"""`harness compare --csv`, `--markdown` and `--latex`."""

from __future__ import annotations

import csv
import io

import pytest
from support import compared_runs

from harness.cli.main import main
from harness.comparison import table_export
from harness.comparison.compare import compare_runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A baseline, a better run and a worse one, whose names have special characters."""
    folder = tmp_path_factory.mktemp("runs")
    skills = {"base_1": 0.5, "better|2": 0.95, "worse & 3": 0.1}
    for seed, (name, skill) in enumerate(skills.items()):
        compared_runs.write_finished_run(folder / name, skill, seed)
    return [str(folder / name) for name in skills]


@pytest.fixture(scope="module")
def comparison(folders):
    return compare_runs(folders)


@pytest.mark.slow
def test_csv_has_every_score_of_every_run(comparison):
    rows = list(csv.DictReader(io.StringIO(table_export.format_csv(comparison))))
    assert len(rows) == len(comparison.pairs)
    for row, pair in zip(rows, comparison.pairs, strict=True):
        assert (row["run"], row["suite"], row["score"]) == (comparison.runs[pair.run].name, pair.suite, pair.score)
        assert float(row["difference_low"]) == pair.difference.low
        assert (row["baseline"], row["verdict"]) == ("base_1", pair.verdict)


def test_markdown_has_one_row_for_each_run(comparison):
    header, rule, *rows = [line for line in table_export.format_markdown(comparison).splitlines() if line[:1] == "|"]
    assert header == r"| run | desk/exact\_match |"
    assert rule == "| --- | ---: |"
    assert [row.split(" | ")[0] for row in rows] == [r"| base\_1", r"| better\|2", "| worse &amp; 3"]
    assert rows[1].endswith(") ▲ |")
    assert rows[2].endswith(") ▼ |")
    better = next(pair for pair in comparison.pairs if (pair.run, pair.score) == (1, "exact_match"))
    assert f"{better.second.value:.3f} (+{better.difference.value:.3f} [" in rows[1]


def test_latex_is_escaped_and_has_two_columns_for_each_score(comparison):
    text = table_export.format_latex(comparison)
    assert r"\begin{tabular}{lrl}" in text
    assert r"\multicolumn{2}{c}{desk/exact\_match}" in text
    assert r"worse \& 3 & " in text
    assert r"$-$0." in text
    assert "−" not in text
    assert all(line.endswith(r"\\") for line in text.splitlines() if " & " in line)


def test_a_general_suite_is_shown_by_the_score_that_judges_it(tmp_path):
    metrics = {"rouge": {}, "response_perplexity": {}}
    document = compared_runs.run_spec(suites=("desk", "world"), metrics=metrics)
    runs = []
    for seed, skill in enumerate((0.2, 0.8)):
        stages = [
            {suite: compared_runs.build_items(60, skill if stage else 0.1, seed) for suite in ("desk", "world")}
            for stage in (0, 1)
        ]
        spec = {**document, "train": {"learning_rate": seed}}
        runs.append(str(compared_runs.write_run(tmp_path / f"run {seed}", stages, document=spec, predictions=False)))
    comparison = compare_runs(runs)
    table = table_export.build_run_table(comparison)
    assert table.scores == (("desk/rouge1", True), ("world/response_nll", False))
    assert comparison.score == "desk/rouge1"


@pytest.mark.slow
def test_requested_score_replaces_the_one_of_its_suite(folders):
    name = next(pair.score for pair in compare_runs(folders).pairs if pair.score != "exact_match")
    table = table_export.build_run_table(compare_runs(folders, score=f"desk/{name}"))
    assert [score for score, _ in table.scores] == [f"desk/{name}"]


@pytest.mark.slow
def test_the_command_writes_files_or_prints_one(folders, tmp_path, capsys):
    file = tmp_path / "table.csv"
    assert main(["compare", *folders, "--csv", str(file), "--latex", "-"]) == 0
    assert capsys.readouterr().out.startswith("% Differences to the first row")
    assert file.read_text().startswith("run,baseline,suite,")
    assert main(["compare", *folders, "--csv", str(file)]) == 0
    assert capsys.readouterr().out.endswith(f"\nwrote {file}\n")
    assert main(["compare", *folders, "--csv", "-", "--json"]) == 2
    assert "give all but one a file" in capsys.readouterr().err
