"""Arms at equal gain, from the files of finished runs, on the page, in Markdown, the terminal and the API."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console
from support import example_run, html_reader

from harness.api.results import ExperimentResult
from harness.report import arm_comparison, finished_run
from harness.report.equal_gain import parse_equal_gain
from harness.report.html import write
from harness.report.html.run_files import load_experiment_files
from harness.report.markdown import format_experiment_markdown
from harness.terminal.arms_table import format_arms
from harness.utils import json_files

ITEMS = 60
BASE = [0.3 + 0.001 * index for index in range(ITEMS)]
NLL = [20.0 + index % 5 for index in range(ITEMS)]


def evaluations(stage, gain, loss, seed=0):
    wobble = [0.02 * math.sin(index + 3 * seed) for index in range(ITEMS)]
    return (
        example_run.made_evaluation(stage, "helpdesk", [x + gain + w for x, w in zip(BASE, wobble, strict=True)], NLL),
        example_run.made_evaluation(stage, "general", [x - loss + w for x, w in zip(BASE, wobble, strict=True)], NLL),
    )


def write_arm(folder, path, seed=0, within=True):
    """Write a run whose gain and loss of ROUGE-L follow a path: mid-stage points, and the end."""
    (folder / "stages/mixed/evaluations").mkdir(parents=True)
    train = {"evaluate_steps": 10 if within else None}
    roles = {"helpdesk": {"role": "domain"}, "general": {"role": "general"}}
    (folder / "spec.json").write_text(json.dumps({"seed": seed, "evaluate": roles, "train": train}))
    *middle, end = path
    json_files.write_scores([evaluations(0, 0, 0), evaluations(1, *end, seed)], ["base", "mixed"], folder)
    for number, point in enumerate(middle if within else (), start=1):
        values = {"step": 10 * number, "suites": json_files.evaluations_as_dict(evaluations(1, *point, seed))}
        (folder / f"stages/mixed/evaluations/{10 * number}.json").write_text(json.dumps(values))
    return finished_run.load_finished_run(folder)


PATHS = {
    "naive": [(0.1, 0.05), (0.3, 0.25)],
    "short": [(0.1, 0.04), (0.2, 0.1)],
    "mixing": [(0.1, 0.01), (0.25, 0.04)],
}


def compare(tmp_path, forgetting="general/rougeL", **runs):
    settings = arm_comparison.ComparisonSettings(gain_score="helpdesk/rougeL", forgetting_score=forgetting)
    return arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, settings, seed=0)


@pytest.fixture
def experiment(tmp_path):
    runs = {name: write_arm(tmp_path / "arms" / name, path) for name, path in PATHS.items()}
    runs["late"] = write_arm(tmp_path / "arms/late", [(0.3, 0.2)], within=False)
    result = compare(tmp_path, **runs)
    result.write(tmp_path)
    return result


@pytest.mark.slow
def test_arms_are_read_off_at_the_gain_that_all_reach(experiment):
    result = experiment.equal_gain
    assert result.limited_by == "short"
    assert result.gain == pytest.approx(0.2, abs=0.001)
    at_gain = {point.arm: point for point in result.points}
    expected = {"naive": 0.15, "short": 0.1, "mixing": 0.01 + 0.03 * 2 / 3}
    for arm, loss in expected.items():
        assert at_gain[arm].forgotten.value == pytest.approx(loss, abs=0.001), arm
    assert at_gain["naive"].against is None
    assert at_gain["mixing"].against.value == pytest.approx(0.03 - 0.15, abs=0.001)
    assert at_gain["mixing"].against.n == ITEMS
    assert at_gain["mixing"].verdict == "better"
    assert at_gain["naive"].where == ("step 10 of mixed to the end of mixed",)
    assert result.text.startswith("at equal gain (0.2")
    assert "'mixing' forgets least" in result.text


@pytest.mark.slow
def test_an_arm_without_mid_stage_evaluations_is_missing_with_the_key_to_set(experiment):
    assert experiment.equal_gain.missing.keys() == {"late"}
    assert 'set "train.evaluate_steps"' in experiment.equal_gain.missing["late"]


def test_equal_gain_is_on_the_page_in_markdown_in_the_terminal_and_in_the_interface(experiment, tmp_path):
    stored = json.loads((tmp_path / "arms.json").read_text())["equal_gain"]
    assert json_files.json_safe(parse_equal_gain(stored).curves["naive"][0][0]) == [0.0, 0.0]
    write.write_experiment_page(tmp_path)
    root = html_reader.parse_html((tmp_path / "report.html").read_text())
    rows = [row.attrs["data-equal-gain"] for row in root.find_all("tr") if "data-equal-gain" in row.attrs]
    assert rows == [*PATHS]
    assert (tmp_path / "plots/equal-gain.svg").is_file()
    markdown = format_experiment_markdown(load_experiment_files(tmp_path))
    assert "| mixing |" in markdown.split("forgotten at equal gain")[1]
    stream = io.StringIO()
    Console(file=stream, width=80).print(format_arms(experiment))
    assert "at equal gain (0.2" in stream.getvalue()
    frame = ExperimentResult(tmp_path).equal_gain
    assert frame.arm.tolist() == [*PATHS]
    assert frame.verdict.tolist()[2] == "better"


def test_seeds_are_pooled_and_paired(tmp_path):
    runs = {
        arm: {
            seed: write_arm(
                tmp_path / f"arms/{arm},seed={seed}", [(g, loss + 0.002 * seed) for g, loss in PATHS[arm]], seed
            )
            for seed in (0, 1, 2)
        }
        for arm in ("naive", "mixing")
    }
    result = compare(tmp_path, **runs).equal_gain
    assert result.limited_by.startswith("mixing, seed ")
    assert [len(result.curves[arm]) for arm in runs] == [3, 3]
    mixing = result.points[1]
    assert len(mixing.where) == 3
    assert mixing.forgotten.method == "seeds"
    assert mixing.against.high < 0


@pytest.mark.parametrize(
    ("path", "forgetting", "reason"),
    [
        ([(-0.1, 0.1), (-0.2, 0.2)], "general/rougeL", "other never gains in helpdesk/rougeL"),
        (None, "general/rougeL", 'set "train.evaluate_steps"'),
    ],
)
def test_without_a_common_gain_the_reason_is_given(tmp_path, path, forgetting, reason):
    runs = {"naive": write_arm(tmp_path / "naive", PATHS["naive"])}
    runs["other"] = write_arm(tmp_path / "other", path or [(0.3, 0.2)], within=path is not None)
    result = compare(tmp_path, forgetting, **runs).equal_gain
    assert result.gain is None
    assert reason in result.text


def write_continued_run(folder, path):
    """Write a run that continues an earlier one; both have a stage `mixed`."""
    own = write_arm(folder, path)
    json_files.write_scores([own.evaluations[0], evaluations(1, 0.05, 0.02), own.evaluations[1]],
                            ["base", "mixed", "mixed-2"], folder)  # fmt: skip
    (folder / "data.json").write_text(json.dumps({"stages": ["mixed"]}))
    return finished_run.load_finished_run(folder)


def test_a_continued_run_has_the_evaluations_within_its_own_stages(tmp_path):
    run = write_continued_run(tmp_path / "run", PATHS["naive"])
    assert finished_run.load_evaluations_within_stage(run, 1) == {}, "the earlier run has them"
    assert [*finished_run.load_evaluations_within_stage(run, 2)] == [10]
    runs = {"naive": run, "mixing": write_continued_run(tmp_path / "other", PATHS["mixing"])}
    result = compare(tmp_path, **runs).equal_gain
    assert result.points[0].where == ("step 10 of mixed-2 to the end of mixed-2",)
    assert [round(gain, 2) for gain, _ in result.curves["naive"][0]] == [0, 0.05, 0.1, 0.3]


def test_a_suite_that_only_the_continued_run_has_gains_from_its_start(tmp_path):
    run = write_continued_run(tmp_path / "run", PATHS["naive"])
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    del scores["stages"][0]["suites"]["helpdesk"]
    (tmp_path / "run/scores.json").write_text(json.dumps(scores))
    run = finished_run.load_finished_run(tmp_path / "run")
    runs = {"naive": run, "mixing": write_continued_run(tmp_path / "other", PATHS["mixing"])}
    result = compare(tmp_path, **runs).equal_gain
    assert [round(gain, 2) for gain, _ in result.curves["naive"][0]] == [0, 0.05, 0.25]
