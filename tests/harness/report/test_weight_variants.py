"""Weight variants: their file, and the pages of a run and of an experiment with them."""

from __future__ import annotations

import json
import math

import pytest
from support import example_run, html_reader, run_folders

from harness.report import arm_comparison, weight_variants
from harness.report.html import write

BASE = [0.3 + 0.01 * (i % 5) for i in range(40)]
NLL = [20.0 + i % 5 for i in range(40)]


def evaluation(stage, gain=0.0, rise=0.0):
    wobble = [0.02 * math.sin(i) for i in range(40)]
    return (
        example_run.made_evaluation(stage, "helpdesk", [b + gain + w for b, w in zip(BASE, wobble, strict=True)], NLL),
        example_run.made_evaluation(stage, "general", BASE, [n + rise + w for n, w in zip(NLL, wobble, strict=True)]),
    )


def variant_entry(name, gain, rise, stage="stage-1"):
    scores = weight_variants.variant_scores_as_dicts(
        evaluation(1, gain, rise), [evaluation(0), evaluation(1, 0.3, 5.0)], example_run.BY_SUITE
    )
    return {"stage": stage, "mitigation": "wise_ft", "variant": name, "scores": scores}


def number(data):
    return float(data.attrs["value"])


def write_variants(folder, *variants):
    (folder / "variants.json").write_text(json.dumps({"variants": variants}))


SWEEP = (variant_entry("alpha=0.75", 0.2, 3.0), variant_entry("alpha=0.25", 0.1, 1.0))


def test_change_of_a_variant_is_relative_to_the_base(monkeypatch):
    monkeypatch.setattr(type(example_run.METRICS["rouge"]), "is_ratio", lambda self, name: True)
    scores = {f"{one['suite']}/{one['score']}": one for one in variant_entry("alpha=0.5", 0.1, 1.0)["scores"]}
    assert scores["helpdesk/rougeL"]["change"]["value"] == pytest.approx(0.1)
    assert scores["helpdesk/rougeL"]["change"]["method"] == "t"
    assert scores["helpdesk/rougeL"]["n"] == scores["helpdesk/rougeL"]["change"]["n"] == 40
    assert scores["general/response_perplexity"]["change"]["low"] > 0


def test_improvement_and_degradation_follow_metric_direction():
    (variant,) = weight_variants.parse_variants({"variants": [variant_entry("alpha=0.5", 0.1, 1.0)]})
    assert variant.parameter_value == 0.5
    assert variant.improvement_on("helpdesk/rougeL").value == pytest.approx(0.1)
    assert variant.improvement_on("general/response_perplexity").value < 0
    lost = variant.degradation_on("general/response_perplexity")
    assert 0 < lost.low < lost.value < lost.high
    assert variant.degradation_on("forgetting:rougeL") is None
    assert variant.improvement_on("helpdesk/chrf") is None


@pytest.mark.slow
def test_run_page_has_the_sweep_in_numeric_order(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    write_variants(folder, *SWEEP)
    write.write_run_page(folder)
    page = html_reader.parse_html((folder / "report.html").read_text(encoding="utf-8"))
    section = page.find("section", id="variants")
    assert section.find("h3").text == "wise_ft after stage-1"
    rows = {one.attrs["data-variant"]: one for one in section.find_all("tr") if "data-variant" in one.attrs}
    assert list(rows) == ["alpha=0.75", "alpha=0.25"]
    gain, lost = list(map(number, rows["alpha=0.25"].find_all("data")))[:2]
    assert gain == pytest.approx(0.1)
    assert lost > 0
    drawing = (folder / "plots" / "variants-stage-1-wise-ft.svg").read_text(encoding="utf-8")
    assert drawing.index("alpha=0.25: gain") < drawing.index("alpha=0.75: gain")
    assert "wise_ft alpha" in drawing


@pytest.mark.slow
def test_variants_without_number_are_a_table_only(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    write.write_run_page(folder)
    assert 'id="variants"' not in (folder / "report.html").read_text(encoding="utf-8")
    write_variants(folder, variant_entry("average", 0.1, 1.0))
    write.write_run_page(folder)
    section = html_reader.parse_html((folder / "report.html").read_text(encoding="utf-8")).find(
        "section", id="variants"
    )
    assert len([one for one in section.find_all("tr") if "data-variant" in one.attrs]) == 1
    assert not list(section.find_all("svg"))


@pytest.mark.slow
def test_invalid_file_is_reported_and_the_page_is_written(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    (folder / "variants.json").write_text(json.dumps({"variants": [{"stage": "a"}]}))
    write.write_run_page(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "variants.json cannot be read by this version" in text
    assert 'id="variants"' not in text


@pytest.mark.slow
def test_hostile_names_are_escaped(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    write_variants(
        folder,
        variant_entry(run_folders.HOSTILE_TEXT + "=1", 0.1, 1.0),
        variant_entry(run_folders.HOSTILE_TEXT + "=2", 0.1, 1.0),
    )
    write.write_run_page(folder)
    page = html_reader.parse_html((folder / "report.html").read_text(encoding="utf-8"))
    assert list(page.find("section", id="variants").find_all("svg"))
    assert len(list(page.find_all("script"))) == 1
    assert not list(page.find_all("img"))


@pytest.mark.slow
def test_experiment_page_has_variants_as_points(tmp_path):
    folder = run_folders.write_experiment(tmp_path / "sweep")
    write_variants(folder / "arms" / "naive", variant_entry("alpha=0.5", 0.9, 9.0, "before"), *SWEEP)
    write.write_experiment_page(folder)
    page = html_reader.parse_html((folder / "report.html").read_text(encoding="utf-8"))
    section = page.find("section", id="arms")
    beside = [one.attrs["data-variant"] for one in section.find_all("tr") if "data-variant" in one.attrs]
    assert beside == ["naive alpha=0.75", "naive alpha=0.25"]  # of the last stage alone
    drawing = (folder / "plots" / "gain-forgetting.svg").read_text(encoding="utf-8")
    assert "naive alpha=0.25: gain" in drawing
    known = json.loads((folder / "arms.json").read_text())
    assert [one.attrs["data-arm"] for one in section.find_all("tr") if "data-arm" in one.attrs] == list(known["arms"])


def test_experiment_with_summary_axis_has_no_variant_points():
    (variant,) = weight_variants.parse_variants({"variants": [SWEEP[0]]})
    assert arm_comparison.variant_point(variant, "x", "helpdesk/rougeL", "forgetting:rougeL") is None
