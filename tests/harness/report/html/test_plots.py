"""The plots of a report show the numbers and have no side effects."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
import subprocess
import sys

import pytest
from support import html_reader
from support.paths import ROOT

from harness.report.html import run_page
from harness.report.html.plots import bars, curves, gain_vs_forgetting, svg_canvas, sweep
from harness.report.html.plots.bars import LengthBin
from harness.report.html.plots.curves import Curve
from harness.report.html.plots.heatmap import plot_heatmap
from harness.report.recommendation import ArmPoint
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.statistics.intervals import Estimate


def parse_plot(plot):
    return html_reader.parse_html(plot.to_inline_svg())


def text_labels(plot):
    return [element.text for element in parse_plot(plot).find_all("text")]


def build_matrix(higher_is_better, values, suites=("helpdesk", "general")):
    return StageSuiteMatrix("a_score", "m", higher_is_better, suites, (1, None), (False, True), values, {})


def build_estimate(value, half=0.1):
    return Estimate(value, half / 2, value - half, value + half, 50)


def point(arm, gain, forgotten, half=0.1):
    return ArmPoint(arm, build_estimate(gain, half), build_estimate(forgotten, half), None, True)


# -- the heat map -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
def test_heatmap_cells_are_blue_if_better_and_orange_if_worse(higher):
    plot = plot_heatmap(build_matrix(higher, ((1.0, 1.0), (2.0, 0.5))), ("base", "one"), "m")
    up, down = (parse_plot(plot).find(id=f"m-cell-1-{j}").find("path").attrs["style"] for j in (0, 1))
    assert ("var(--gain)" in up) == higher
    assert ("var(--gain)" in down) != higher
    assert "fill-opacity: 0.5" in up, "the largest change"
    assert "fill-opacity: 0.25" in down, "half of it"


def test_heatmap_tooltip_shows_value_and_change():
    plot = plot_heatmap(build_matrix(True, ((0.25, 1.0), (0.75, math.nan))), ("base", "one"), "m")
    assert (
        parse_plot(plot).find(id="m-cell-1-0").find("title").text == "helpdesk after one: 0.750, +0.500 since the base"
    )
    assert "–" in text_labels(plot)


def test_heatmap_without_changes_has_no_color():
    plot = plot_heatmap(build_matrix(True, ((0.5, 1.0), (0.5, 1.0))), ("base", "one"), "m")
    assert "fill-opacity: 0.5" not in plot.to_inline_svg()


# -- curves -----------------------------------------------------------------------------------------------------------


def test_long_curve_is_downsampled_to_means_of_neighbors():
    updates, values = curves.downsample(range(1, 16_001), [float(step % 2) for step in range(16_000)])
    assert len(values) <= curves.MAX_POINTS
    assert updates[-1] == 16_000
    assert set(values) == {0.5}
    assert curves.downsample([1, 2], [3.0, math.nan])[0] == [1, 2], "a short curve is unchanged"


def test_running_mean_ignores_nan():
    assert curves.running_mean([1.0, math.nan, 3.0], 1) == [1.0, 2.0, 3.0]
    assert math.isnan(curves.running_mean([math.nan], 3)[0])


def test_stages_follow_each_other_on_the_step_axis():
    curve = Curve("loss", (([1.0, 40.0], [2.0, 1.0]), ([1.0, 10.0], [3.0, 0.5])))
    plot = curves.plot_curves([curve], ("first", "second"), "loss", "Loss", unit="nats")
    assert {"first", "second", "step", "nats", "50"} <= set(text_labels(plot))
    assert parse_plot(plot).find("desc").text == "loss goes from 2.000 to 0.500."


def test_several_curves_have_labels_and_different_line_styles():
    penalties = [Curve(name, (([1.0, 2.0], [0.1, 0.2]),), from_zero=True) for name in ("ewc", "_hidden")]
    plot = curves.plot_curves(penalties, ("one",), "penalties", "Penalties", unit="")
    assert {"ewc", " _hidden"} <= set(text_labels(plot))
    assert "stroke-dasharray" in plot.to_inline_svg()


def test_marked_step_has_a_label_and_discarded_steps_are_shaded():
    curve = Curve("a", (([0.0, 10.0], [2.0, 1.0]), ([0.0, 10.0], [1.0, 3.0])), mark_points=True)
    plain = curves.plot_curves([curve], ("one", "two"), "m", "M", unit="")
    marked = curves.plot_curves(
        [curve], ("one", "two"), "m", "M", unit="", marks=[curves.StepMark(1, 4.0, "best: 4", 10.0)]
    )
    assert "best: 4" in text_labels(marked)
    assert parse_plot(marked).find("desc").text.endswith("two: best: 4.")
    assert "opacity: 0.14" in marked.to_inline_svg()
    assert "opacity: 0.14" not in plain.to_inline_svg()
    assert len(list(parse_plot(plain).find_all("use"))) >= 4, "a dot for each of the few points"


def test_stage_can_be_longer_than_its_curve():
    curve = Curve("a", (([0.0], [2.0]), ([0.0, 10.0], [1.0, 3.0])))
    plot = curves.plot_curves([curve], ("one", "two"), "m", "M", unit="", stage_steps=[30.0, 10.0])
    assert {"one", "two", "40"} <= set(text_labels(plot))


# -- bars -------------------------------------------------------------------------------------------------------------


def test_length_bins_are_parsed_from_edges_and_from_bins():
    edges = {"edges": [0, 16.0, 32, 64], "counts": [3, 0, 4], "max_length": 31}
    assert run_page.parse_length_bins(edges) == [
        LengthBin(0, 15, 3, False),
        LengthBin(16, 31, 0, False),
        LengthBin(32, 63, 4, True),
    ]
    bins = {"bins": [{"low": 5, "high": 9, "rows": 2}, {"low": 10, "high": 12, "rows": 1}], "max_length": None}
    assert run_page.parse_length_bins(bins) == [LengthBin(5, 9, 2, False), LengthBin(10, 12, 1, False)]
    assert (
        run_page.parse_length_bins({"edges": [0]})
        == run_page.parse_length_bins(None)
        == run_page.parse_length_bins({"bins": [{}]})
        == []
    )


def test_merged_bins_keep_all_rows_and_never_mix_cut_rows():
    bins = [LengthBin(10 * i, 10 * i + 9, i, i >= 40) for i in range(43)]
    merged = bars.merge_bins(bins)
    assert len(merged) <= bars.MAX_BINS
    assert sum(bin_.rows for bin_ in merged) == sum(bin_.rows for bin_ in bins)
    assert sum(bin_.rows for bin_ in merged if bin_.truncated) == 40 + 41 + 42
    assert [bin_.low for bin_ in merged[1:]] == [bin_.high + 1 for bin_ in merged[:-1]]


def test_histogram_labels_rows_and_cut_rows():
    plot = bars.plot_length_histogram(
        [LengthBin(0, 9, 1200, False), LengthBin(10, 10, 30, True)], "lengths-a", "Lengths"
    )
    assert {"0–9", "10", "1,200", "30 cut"} <= set(text_labels(plot))
    assert parse_plot(plot).find("desc").text == "1,230 rows of 0–9 to 10 tokens; 30 rows are cut."


def test_shares_are_labeled_where_the_bar_has_room_and_all_are_described():
    plot = bars.plot_source_shares({"one": {"a": 0.95, "b": 0.05}, "two": {"a": 0.5, "c": 0.5}}, "shares", "Shares")
    assert {"95%", "50%", "a", "b", "c"} <= set(text_labels(plot))
    assert "5%" not in text_labels(plot)
    assert "b 5.0%" in parse_plot(plot).find("desc").text


# -- gain and forgetting ----------------------------------------------------------------------------------------------


def test_arm_pointlabels_do_not_overlap():
    points = [point(f"arm-{i}", 0.3, 0.5 + 0.01 * i, half=0.02) for i in range(5)]
    plot = gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "arm-0", "gain-forgetting")
    positions = {}
    for element in parse_plot(plot).find_all("text"):
        if element.text.startswith("arm-"):
            positions[element.text] = float(element.attrs["y"]), float(element.attrs["x"])
    assert len(positions) == 5
    boxes = [(x, y - 9, x + 30, y) for y, x in positions.values()]
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            assert box[2] <= other[0] or other[2] <= box[0] or box[3] <= other[1] or other[3] <= box[1]


def test_arm_pointlabel_is_closest_to_its_own_point():
    """The arms of the demo; the label of `lower-lr` was once closer to `ewc`."""
    arms = {  # gain, forgotten, and half of its interval
        "naive": (1.75, 0.788, 0.085), "lower-lr": (1.78, 0.135, 0.034), "replay": (1.58, 0.46, 0.078),
        "l2sp": (1.6, 0.019, 0.019), "ewc": (1.78, 0.004, 0.006), "lora": (1.71, 0.27, 0.048),
        "wise-ft": (1.84, 0.214, 0.04),
    }  # fmt: skip
    points = [
        ArmPoint(name, build_estimate(gain, 0.17), build_estimate(forgotten, half), None, name in ("ewc", "wise-ft"))
        for name, (gain, forgotten, half) in arms.items()
    ]
    root = parse_plot(gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "naive", "gain-forgetting"))
    mark_positions = {}
    for index, arm_point in enumerate(points):
        use = root.find(id=f"gain-forgetting-point-{index}").find("use").attrs
        mark_positions[arm_point.arm] = float(use["x"]), float(use["y"])
    num_labels = 0
    for text in root.find_all("text"):
        if text.text in mark_positions:
            x, y = float(text.attrs["x"]), float(text.attrs["y"])
            right = x + 6 * len(text.text)
            gaps = {
                arm: math.hypot(max(x - at, 0, at - right), max(y - 10 - up, 0, up - y))
                for arm, (at, up) in mark_positions.items()
            }
            assert min(gaps, key=gaps.__getitem__) == text.text, gaps
            num_labels += 1
    assert num_labels == len(points)


def test_a_line_connects_a_label_and_its_point_where_points_are_close():
    arms = json.loads((ROOT / "docs" / "evidence.json").read_text(encoding="utf-8"))["pairs"]["lists"]["arms"]
    points = [
        ArmPoint(arm["arm"], *(Estimate(value, 0.1, low, high, 4) for value, low, high in values), None, False)
        for arm in arms
        for values in [(arm["gain"], arm["forgotten"])]
    ]
    root = parse_plot(gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "naive", "gain-forgetting"))
    marks = []
    for index in range(len(points)):
        use = root.find(id=f"gain-forgetting-point-{index}").find("use").attrs
        marks.append((float(use["x"]), float(use["y"])))
    lines = [
        [float(number) for number in re.findall(r"[\d.]+", path.attrs["d"])]
        for path in root.find_all("path")
        if re.fullmatch(r"M [\d.]+ [\d.]+ Q [\d. ]+", path.attrs.get("d", ""))
    ]
    assert len(lines) >= 5, "the points of this result are close"
    for line in lines:
        (x, y), (end_x, end_y) = line[:2], line[-2:]
        near_end = sorted(math.dist(mark, (end_x, end_y)) for mark in marks)
        assert near_end[0] == pytest.approx(gain_vs_forgetting.MARK_RADIUS, abs=0.5), "a line ends at the rim of a mark"
        along = [(x + (end_x - x) * part / 50, y + (end_y - y) * part / 50) for part in range(51)]
        gaps = sorted(min(math.dist(mark, at) for at in along) for mark in marks)
        assert gaps[1] > gain_vs_forgetting.MARK_RADIUS, "a line crosses another mark"


def test_names_do_not_cover_each_other_where_points_are_close():
    places = [(0.5, 0.1), (0.51, 0.1), (0.52, 0.11), (0.53, 0.1), (0.9, 0.9)]
    points = [point(f"arm-{index}", gain, forgotten, half=0.01) for index, (gain, forgotten) in enumerate(places)]
    root = parse_plot(gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "arm-0", "gain-forgetting"))
    texts = [text.attrs for text in root.find_all("text") if text.text.startswith("arm-")]
    assert len(texts) == len(points)
    for first, second in itertools.combinations(texts, 2):
        across, up = (abs(float(first[key]) - float(second[key])) for key in ("x", "y"))
        assert across > 28 or up > 9


def test_gain_has_no_line_at_zero_if_all_arms_gain():
    def count_lines(gains):
        points = [point(f"arm-{index}", gain, 0.1, half=0.01) for index, gain in enumerate(gains)]
        plot = gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "arm-0", "gain-forgetting")
        return len(re.findall("stroke-width: 0.9", plot.to_inline_svg()))

    assert (count_lines([1.8, 1.9]), count_lines([-0.1, 1.9])) == (1, 2)


def test_arm_pointwithout_interval_has_no_error_bar():
    points = [ArmPoint("one", Estimate(0.1, math.nan, math.nan, math.nan, 1), build_estimate(0.2), None, True)]
    plot = gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "one", "gain-forgetting")
    assert "gain +0.100 [–, –]" in plot.to_inline_svg()


def test_sweep_curve_goes_through_the_mean_of_arms_with_equal_value():
    points = [(0.0, point("a", 0.1, 0.5)), (0.1, point("b", 0.2, 0.1)), (0.1, point("c", 0.4, 0.3))]
    plot = sweep.plot_sweep(points, "a/b", "c/d", sweep.SweepAxis("mixing.share", percent=True), "sweep")
    assert {"0 %", "10 %", "mixing.share", "gain in a/b", "forgotten in c/d"} <= set(text_labels(plot))
    root = parse_plot(plot)
    heights = {}
    for index in range(3):
        heights[index] = float(root.find(id=f"sweep-gain-{index}").find("use").attrs["y"])
    lines = [
        element.attrs["d"].split()
        for element in root.find_all("path")
        if "stroke: var(--gain)" in element.attrs.get("style", "")
    ]
    line = next(line for line in lines if len(line) == 6 and line[1] != line[4])
    assert float(line[5]) == pytest.approx((heights[1] + heights[2]) / 2, abs=0.01)


def mark_positions(plot, quantity, count):
    """Return (x, y) of the mark_positions of the gain or the forgetting."""
    uses = [parse_plot(plot).find(id=f"sweep-{quantity}-{index}").find("use").attrs for index in range(count)]
    return [(float(use["x"]), float(use["y"])) for use in uses]


def test_sweep_axis_is_logarithmic_for_a_large_ratio_with_zero_apart():
    values = (0.0, 0.01, 0.05, 0.1, 0.25)
    points = [(value, point(f"share={value}", 0.3, 0.5 - value)) for value in values]
    plot = sweep.plot_sweep(points, "a/b", "c/d", sweep.SweepAxis("mixing.share", percent=True), "sweep")
    assert {"0 %", "1 %", "5 %", "10 %", "25 %", "mixing.share, logarithmic", "//"} <= set(text_labels(plot))
    at = [x for x, _ in mark_positions(plot, "gain", 5)]
    assert (at[3] - at[2]) / (at[2] - at[1]) == pytest.approx(math.log(2) / math.log(5), rel=1e-3)
    assert at[1] - at[0] == pytest.approx((at[4] - at[1]) / 3, rel=1e-3)
    narrow = sweep.plot_sweep(points[2:], "a/b", "c/d", sweep.SweepAxis("mixing.share", percent=True), "sweep")
    assert "mixing.share" in text_labels(narrow)
    assert "//" not in text_labels(narrow)
    signed = [(value, point(str(value), 0.3, 0.5)) for value in (-1.0, 0.01, 10.0)]
    assert "x" in text_labels(sweep.plot_sweep(signed, "a/b", "c/d", sweep.SweepAxis("x"), "sweep")), (
        "a number below 0 has no logarithm"
    )


def test_sufficient_value_is_marked_only_if_an_arm_has_it():
    points = [(0.0, point("a", 0.1, 0.5)), (0.1, point("b", 0.2, 0.1)), (0.2, point("c", 0.4, 0.3))]
    plot = sweep.plot_sweep(
        points, "a/b", "c/d", sweep.SweepAxis("mixing.share", percent=True, sufficient_value=0.1), "sweep"
    )
    assert "sufficient: 10 %" in text_labels(plot)
    assert parse_plot(plot).find("desc").text.endswith("10 % is sufficient.")
    plot = sweep.plot_sweep(
        points, "a/b", "c/d", sweep.SweepAxis("mixing.share", percent=True, sufficient_value=0.15), "sweep"
    )
    assert not any("sufficient" in label for label in text_labels(plot))


def test_arm_without_a_value_is_a_horizontal_line():
    points = [(1.0, point("ewc=1", 0.1, 0.5)), (2.0, point("ewc=2", 0.2, 0.1))]
    nothing = ArmPoint("none", Estimate(math.nan, math.nan, math.nan, math.nan, 0), build_estimate(0.9), None, False)
    plot = sweep.plot_sweep(
        points,
        "a/b",
        "c/d",
        sweep.SweepAxis("ewc.strength"),
        "sweep",
        reference_points=[point("naive", 0.3, 2.0), nothing],
    )
    assert text_labels(plot).count("naive") == 2
    assert text_labels(plot).count("none") == 1, "there is no line where there is no number"
    line = parse_plot(plot).find(id="sweep-forgotten-reference-0")
    assert line.find("title").text == "naive: +2.000 [+1.900, +2.100]"
    assert float(line.find("path").attrs["d"].split()[2]) < mark_positions(plot, "forgotten", 2)[0][1], (
        "more is higher up"
    )


def test_joint_arm_has_its_own_marker():
    points = [point("naive", 0.3, 0.5), point("joint", 0.4, 0.1)]
    without = gain_vs_forgetting.plot_gain_vs_forgetting(
        points, "a/b", "c/d", "naive", "gain-forgetting"
    ).to_inline_svg()
    assert (
        gain_vs_forgetting.plot_gain_vs_forgetting(
            points, "a/b", "c/d", "naive", "gain-forgetting", joint_arm="joint"
        ).to_inline_svg()
        != without
    )


# -- side effects ----------------------------------------------------------------------------------------------


def test_plot_ignores_and_keeps_the_matplotlib_settings_of_the_user():
    import matplotlib

    before = (matplotlib.rcParams["font.size"], logging.getLogger("matplotlib").level)
    plain = plot_heatmap(build_matrix(True, ((0.5, 1.0), (0.6, 1.0))), ("base", "one"), "m").to_inline_svg()
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert plot_heatmap(build_matrix(True, ((0.5, 1.0), (0.6, 1.0))), ("base", "one"), "m").to_inline_svg() == plain
        assert matplotlib.rcParams["font.size"] == 40
    assert (matplotlib.rcParams["font.size"], logging.getLogger("matplotlib").level) == before


def test_plots_import_neither_pyplot_nor_torch():
    program = (
        "import sys, harness.report.html.write\n"
        "assert not any(name.startswith(('matplotlib', 'jinja2')) for name in sys.modules)\n"
        "from harness.report.html.plots.bars import LengthBin, plot_length_histogram\n"
        "plot_length_histogram([LengthBin(0, 1, 2, False)], 'a', 'b').to_svg_file()\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_formulas_and_invisible_characters_in_names_are_shown_as_text():
    plot = plot_heatmap(build_matrix(True, ((1.0, 2.0),), ("$\\frac{$", "\u202e\x1b\uffff<b>")), ("base",), "m")
    assert {"$\\frac{$", "\\u202e␛�<b> *"} <= set(text_labels(plot))
    html_reader.parse_html(plot.to_svg_file().partition("?>")[2])


@pytest.mark.parametrize("scheme", [svg_canvas.LIGHT_COLORS, svg_canvas.DARK_COLORS])
def test_text_and_marks_have_enough_contrast(scheme):
    def luminance(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(first, second):
        low, high = sorted((luminance(scheme[first]), luminance(scheme[second])))
        return (high + 0.05) / (low + 0.05)

    for behind in ("paper", "surface"):
        for text in ("ink", "muted", "accent", "gain", "loss"):
            assert contrast(text, behind) >= 4.5, f"{text} on {behind} (WCAG 2.2, 1.4.3)"
        for mark in svg_canvas.SERIES_NAMES:
            assert contrast(mark, behind) >= 3, f"{mark} on {behind} (WCAG 2.2, 1.4.11)"


def test_both_palettes_have_the_same_names_and_placeholders_are_unique():
    assert list(svg_canvas.LIGHT_COLORS) == list(svg_canvas.DARK_COLORS)
    assert len(set(svg_canvas.PLACEHOLDER_COLORS.values())) == len(svg_canvas.LIGHT_COLORS)
    assert all(
        re.fullmatch("#[0-9a-f]{6}", color)
        for color in [*svg_canvas.LIGHT_COLORS.values(), *svg_canvas.DARK_COLORS.values()]
    )
