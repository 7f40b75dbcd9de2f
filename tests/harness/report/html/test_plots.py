"""The plots of a report: what they show of the numbers, and that they leave nothing behind."""

from __future__ import annotations

import logging
import math
import re
import subprocess
import sys

import pytest
from support import html_reader

from harness.report.html import run_page
from harness.report.html.plots import bars, curves, gain_vs_forgetting, svg_canvas, sweep
from harness.report.html.plots.bars import LengthBin
from harness.report.html.plots.curves import Curve
from harness.report.html.plots.heatmap import plot_heatmap
from harness.report.recommendation import ArmPoint
from harness.report.spec_diff import component_of_key, find_swept_parameter, spec_differences
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.statistics.intervals import Estimate


def drawn(plot):
    return html_reader.parse(plot.to_inline_svg())


def texts(plot):
    return [one.text for one in drawn(plot).all("text")]


def matrix(higher_is_better, values, suites=("helpdesk", "general")):
    return StageSuiteMatrix("a_score", "m", higher_is_better, suites, (1, None), (False, True), values, {})


def estimate(value, half=0.1):
    return Estimate(value, half / 2, value - half, value + half, 50)


def point(arm, gain, forgotten, half=0.1):
    return ArmPoint(arm, estimate(gain, half), estimate(forgotten, half), None, True)


# -- the heat map -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
def test_a_cell_is_blue_for_the_better_and_orange_for_the_worse_whatever_the_direction(higher):
    plot = plot_heatmap(matrix(higher, ((1.0, 1.0), (2.0, 0.5))), ("base", "one"), "m")
    up, down = (drawn(plot).one(id=f"m-cell-1-{j}").one("path").attrs["style"] for j in (0, 1))
    assert ("var(--gain)" in up) == higher
    assert ("var(--gain)" in down) != higher
    assert "fill-opacity: 0.5" in up, "the largest change"
    assert "fill-opacity: 0.25" in down, "half of it"


def test_a_cell_tells_its_value_and_its_change_to_a_pointer():
    plot = plot_heatmap(matrix(True, ((0.25, 1.0), (0.75, math.nan))), ("base", "one"), "m")
    assert drawn(plot).one(id="m-cell-1-0").one("title").text == "helpdesk after one: 0.750, +0.500 since the base"
    assert "–" in texts(plot)


def test_a_matrix_without_change_has_no_colour():
    plot = plot_heatmap(matrix(True, ((0.5, 1.0), (0.5, 1.0))), ("base", "one"), "m")
    assert "fill-opacity: 0.5" not in plot.to_inline_svg()


# -- curves -----------------------------------------------------------------------------------------------------------


def test_a_long_curve_is_thinned_to_means_of_neighbours():
    updates, values = curves.downsample(range(1, 16_001), [float(step % 2) for step in range(16_000)])
    assert len(values) <= curves.MAX_POINTS
    assert updates[-1] == 16_000
    assert set(values) == {0.5}
    assert curves.downsample([1, 2], [3.0, math.nan])[0] == [1, 2], "a short one is as it was"


def test_a_value_that_is_no_number_is_left_out_of_a_mean():
    assert curves.running_mean([1.0, math.nan, 3.0], 1) == [1.0, 2.0, 3.0]
    assert math.isnan(curves.running_mean([math.nan], 3)[0])


def test_stages_follow_one_another_along_the_axis():
    found = Curve("loss", (([1.0, 40.0], [2.0, 1.0]), ([1.0, 10.0], [3.0, 0.5])))
    plot = curves.plot_curves([found], ("first", "second"), "loss", "Loss", unit="nats")
    assert {"first", "second", "update", "nats", "50"} <= set(texts(plot))
    assert drawn(plot).one("desc").text == "loss goes from 2.000 to 0.500."


def test_several_curves_are_named_and_have_other_lines_too():
    found = [Curve(name, (([1.0, 2.0], [0.1, 0.2]),)) for name in ("ewc", "_hidden")]
    plot = curves.plot_curves(found, ("one",), "penalties", "Penalties", unit="", from_zero=True)
    assert {"ewc", " _hidden"} <= set(texts(plot))
    assert "stroke-dasharray" in plot.to_inline_svg()


def test_an_update_is_marked_and_what_was_put_aside_is_shaded():
    found = Curve("a", (([0.0, 10.0], [2.0, 1.0]), ([0.0, 10.0], [1.0, 3.0])), mark_points=True)
    plain = curves.plot_curves([found], ("one", "two"), "m", "M", unit="")
    marked = curves.plot_curves(
        [found], ("one", "two"), "m", "M", unit="", marks=[curves.StepMark(1, 4.0, "best: 4", 10.0)]
    )
    assert "best: 4" in texts(marked)
    assert drawn(marked).one("desc").text.endswith("two: best: 4.")
    assert "opacity: 0.14" in marked.to_inline_svg()
    assert "opacity: 0.14" not in plain.to_inline_svg()
    assert len(list(drawn(plain).all("use"))) >= 4, "a dot for each of the few points"


def test_a_stage_may_be_longer_than_its_curve():
    found = Curve("a", (([0.0], [2.0]), ([0.0, 10.0], [1.0, 3.0])))
    plot = curves.plot_curves([found], ("one", "two"), "m", "M", unit="", stage_steps=[30.0, 10.0])
    assert {"one", "two", "40"} <= set(texts(plot))


# -- bars -------------------------------------------------------------------------------------------------------------


def test_bins_are_read_in_both_forms_and_know_what_is_cut():
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


def test_many_bins_are_joined_and_no_row_is_lost_and_none_that_is_cut_is_mixed_in():
    given = [LengthBin(10 * i, 10 * i + 9, i, i >= 40) for i in range(43)]
    shown = bars.merge_bins(given)
    assert len(shown) <= bars.MAX_BINS
    assert sum(one.rows for one in shown) == sum(one.rows for one in given)
    assert sum(one.rows for one in shown if one.truncated) == 40 + 41 + 42
    assert [one.low for one in shown[1:]] == [one.high + 1 for one in shown[:-1]]


def test_a_histogram_tells_its_rows_and_those_that_are_cut():
    plot = bars.plot_length_histogram(
        [LengthBin(0, 9, 1200, False), LengthBin(10, 10, 30, True)], "lengths-a", "Lengths"
    )
    assert {"0–9", "10", "1,200", "30 cut"} <= set(texts(plot))
    assert drawn(plot).one("desc").text == "1,230 rows of 0–9 to 10 tokens; 30 rows are cut."


def test_shares_are_written_in_bars_that_have_room_and_all_are_told():
    plot = bars.plot_source_shares({"one": {"a": 0.95, "b": 0.05}, "two": {"a": 0.5, "c": 0.5}}, "shares", "Shares")
    assert {"95%", "50%", "a", "b", "c"} <= set(texts(plot))
    assert "5%" not in texts(plot)
    assert "b 5.0%" in drawn(plot).one("desc").text


# -- gain and forgetting ----------------------------------------------------------------------------------------------


def test_the_names_of_points_do_not_hide_one_another():
    points = [point(f"arm-{i}", 0.3, 0.5 + 0.01 * i, half=0.02) for i in range(5)]
    plot = gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "arm-0", "gain-forgetting")
    places = {}
    for one in drawn(plot).all("text"):
        if one.text.startswith("arm-"):
            places[one.text] = float(one.attrs["y"]), float(one.attrs["x"])
    assert len(places) == 5
    boxes = [(x, y - 9, x + 30, y) for y, x in places.values()]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_the_name_of_a_point_stands_nearer_to_it_than_to_any_other():
    """The arms of the demo: `lower-lr` once stood beside `ewc`."""
    given = {  # gain, forgotten, and half of its interval
        "naive": (1.75, 0.788, 0.085), "lower-lr": (1.78, 0.135, 0.034), "replay": (1.58, 0.46, 0.078),
        "l2sp": (1.6, 0.019, 0.019), "ewc": (1.78, 0.004, 0.006), "lora": (1.71, 0.27, 0.048),
        "wise-ft": (1.84, 0.214, 0.04),
    }  # fmt: skip
    points = [
        ArmPoint(name, estimate(gain, 0.17), estimate(lost, half), None, name in ("ewc", "wise-ft"))
        for name, (gain, lost, half) in given.items()
    ]
    root = drawn(gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "naive", "gain-forgetting"))
    marks = {}
    for place, one in enumerate(points):
        use = root.one(id=f"gain-forgetting-point-{place}").one("use").attrs
        marks[one.arm] = float(use["x"]), float(use["y"])
    found = 0
    for text in root.all("text"):
        if text.text in marks:
            x, y = float(text.attrs["x"]), float(text.attrs["y"])
            right = x + 6 * len(text.text)
            gaps = {
                arm: math.hypot(max(x - at, 0, at - right), max(y - 10 - up, 0, up - y))
                for arm, (at, up) in marks.items()
            }
            assert min(gaps, key=gaps.__getitem__) == text.text, gaps
            found += 1
    assert found == len(points)


def test_points_without_an_interval_are_drawn_without_one():
    points = [ArmPoint("one", Estimate(0.1, math.nan, math.nan, math.nan, 1), estimate(0.2), None, True)]
    plot = gain_vs_forgetting.plot_gain_vs_forgetting(points, "a/b", "c/d", "one", "gain-forgetting")
    assert "gain +0.100 [–, –]" in plot.to_inline_svg()


def test_a_sweep_is_drawn_through_the_mean_of_the_arms_of_one_value():
    points = [(0.0, point("a", 0.1, 0.5)), (0.1, point("b", 0.2, 0.1)), (0.1, point("c", 0.4, 0.3))]
    plot = sweep.plot_sweep(points, "a/b", "c/d", "mixing.share", "sweep", percent=True)
    assert {"0 %", "10 %", "mixing.share", "gain in a/b", "forgotten in c/d"} <= set(texts(plot))
    root = drawn(plot)
    heights = {}
    for place in range(3):
        heights[place] = float(root.one(id=f"sweep-gain-{place}").one("use").attrs["y"])
    lines = [one.attrs["d"].split() for one in root.all("path") if "stroke: var(--gain)" in one.attrs.get("style", "")]
    line = next(one for one in lines if len(one) == 6 and one[1] != one[4])
    assert float(line[5]) == pytest.approx((heights[1] + heights[2]) / 2, abs=0.01)


def marks(plot, side, count):
    """Where the marks of a side of a sweep stand: (x, y) of each."""
    uses = [drawn(plot).one(id=f"sweep-{side}-{place}").one("use").attrs for place in range(count)]
    return [(float(one["x"]), float(one["y"])) for one in uses]


def test_values_far_apart_stand_by_their_logarithm_and_zero_apart():
    values = (0.0, 0.01, 0.05, 0.1, 0.25)
    points = [(value, point(f"share={value}", 0.3, 0.5 - value)) for value in values]
    plot = sweep.plot_sweep(points, "a/b", "c/d", "mixing.share", "sweep", percent=True)
    assert {"0 %", "1 %", "5 %", "10 %", "25 %", "mixing.share, logarithmic", "//"} <= set(texts(plot))
    at = [x for x, _ in marks(plot, "gain", 5)]
    assert (at[3] - at[2]) / (at[2] - at[1]) == pytest.approx(math.log(2) / math.log(5), rel=1e-3)
    assert at[1] - at[0] == pytest.approx((at[4] - at[1]) / 3, rel=1e-3)
    narrow = sweep.plot_sweep(points[2:], "a/b", "c/d", "mixing.share", "sweep", percent=True)
    assert "mixing.share" in texts(narrow)
    assert "//" not in texts(narrow)
    signed = [(value, point(str(value), 0.3, 0.5)) for value in (-1.0, 0.01, 10.0)]
    assert "x" in texts(sweep.plot_sweep(signed, "a/b", "c/d", "x", "sweep")), "a number below 0 has no logarithm"


def test_the_value_that_is_enough_is_marked_and_one_that_nobody_ran_is_not():
    points = [(0.0, point("a", 0.1, 0.5)), (0.1, point("b", 0.2, 0.1)), (0.2, point("c", 0.4, 0.3))]
    plot = sweep.plot_sweep(points, "a/b", "c/d", "mixing.share", "sweep", percent=True, sufficient_value=0.1)
    assert "enough: 10 %" in texts(plot)
    assert drawn(plot).one("desc").text.endswith("10 % is enough.")
    plot = sweep.plot_sweep(points, "a/b", "c/d", "mixing.share", "sweep", percent=True, sufficient_value=0.15)
    assert not any("enough" in one for one in texts(plot))


def test_an_arm_without_a_value_is_a_level_line_beside_the_curve():
    points = [(1.0, point("ewc=1", 0.1, 0.5)), (2.0, point("ewc=2", 0.2, 0.1))]
    nothing = ArmPoint("none", Estimate(math.nan, math.nan, math.nan, math.nan, 0), estimate(0.9), None, False)
    plot = sweep.plot_sweep(
        points, "a/b", "c/d", "ewc.strength", "sweep", reference_points=[point("naive", 0.3, 2.0), nothing]
    )
    assert texts(plot).count("naive") == 2
    assert texts(plot).count("none") == 1, "there is no line where there is no number"
    line = drawn(plot).one(id="sweep-forgotten-beside-0")
    assert line.one("title").text == "naive: +2.000 [+1.900, +2.100]"
    assert float(line.one("path").attrs["d"].split()[2]) < marks(plot, "forgotten", 2)[0][1], "more is higher up"


def test_the_joint_arm_has_a_mark_of_its_own():
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


# -- in what runs differ ----------------------------------------------------------------------------------------------


def spec(share=0.1, seed=0, **changes):
    mitigations = {} if share is None else {"mixing": {"share": share}}
    return {"name": str(share), "seed": seed, "train": {"epochs": 1}, "mitigations": mitigations, **changes}


def test_one_number_that_differs_is_swept_and_a_run_without_it_stands_at_none_of_it():
    found = find_swept_parameter({"a": spec(None), "b": spec(0.1), "c": spec(0.2, seed=1)})
    assert found is not None
    assert (found.key, found.is_share) == ("mitigations.mixing.share", True)
    assert found.values == {"a": 0.0, "b": 0.1, "c": 0.2}
    rates = find_swept_parameter({"a": spec(train={"learning_rate": 1e-4}), "b": spec(train={"learning_rate": 2e-4})})
    assert rates is not None
    assert (rates.values, rates.is_share) == ({"a": 1e-4, "b": 2e-4}, False)


@pytest.mark.parametrize(
    "specs",
    [
        {"a": spec(0.1), "b": spec(0.1)},
        {"a": spec(0.1), "b": spec(0.2, train={"epochs": 2})},
        {"a": spec(train={"packing": True}), "b": spec(train={"packing": False})},
        {"a": spec(train={"engine": "x"}), "b": spec(train={"engine": "y"})},
        {"a": spec(None), "b": spec(0.1)},
        {"a": {}, "b": spec(0.1)},
        {"a": spec(None), "b": spec(0.1, train={"epochs": 2}), "c": spec(0.1, train={"epochs": 3})},
    ],
)
def test_nothing_is_swept_where_no_number_alone_differs(specs):
    assert find_swept_parameter(specs) is None


def test_a_run_without_the_component_whose_number_is_swept_has_no_place_where_it_is_no_share():
    def ewc(strength):
        return {"train": {"epochs": 1}, "mitigations": {"ewc": {"strength": strength, "source": "a"}}}

    found = find_swept_parameter({"naive": spec(None), "one": ewc(1.0), "ten": ewc(10.0)})
    assert found is not None
    assert (found.key, found.values) == ("mitigations.ewc.strength", {"one": 1.0, "ten": 10.0})
    assert (found.format_value(10.0), found.is_share) == ("10", False)


def test_what_differs_is_said_key_by_key_without_what_says_nothing_of_the_model():
    specs = {"a": spec(None, track={"experiment": "x"}), "b": spec(0.1)}
    assert spec_differences(specs) == {"mitigations.mixing.share": {"b": 0.1}}


def test_a_component_without_options_differs_from_another_and_hides_behind_no_number():
    specs = {
        "a": spec(template={"alpaca": {}}, train={"learning_rate": 1e-4}),
        "b": spec(template={"llama2": {}}, train={"learning_rate": 2e-4}),
    }
    assert spec_differences(specs)["template.alpaca"] == {"a": {}}
    assert spec_differences(specs)["template.llama2"] == {"b": {}}
    assert find_swept_parameter(specs) is None, "what was gained may be the template's doing"
    known = {"a": spec(train={"early_stopping": None}), "b": spec(train={"early_stopping": {"patience": 1}})}
    assert spec_differences(known) == {"train.early_stopping": {"a": None}, "train.early_stopping.patience": {"b": 1}}


def test_stages_are_compared_setting_by_setting_and_a_number_of_one_of_them_can_be_swept():
    def stages(*strengths, **changes):
        one = [{"name": str(i), "mitigations": {"ewc": {"strength": s}} if s else {}} for i, s in enumerate(strengths)]
        return {"mode": {"continual": {"stages": one}}, **changes}

    key = "mode.continual.stages.1.mitigations.ewc.strength"
    specs = {"naive": stages(1, None), "one": stages(1, 1), "ten": stages(1, 10)}
    assert spec_differences(specs) == {key: {"one": 1, "ten": 10}}
    found = find_swept_parameter(specs)
    assert found is not None
    assert (found.key, found.values) == (key, {"one": 1.0, "ten": 10.0})
    assert find_swept_parameter({**specs, "longer": stages(1, 10, 1)}) is None
    assert component_of_key(key) == "mode.continual.stages.1.mitigations.ewc"
    assert component_of_key("mode.mixed.domain") == "mode.mixed"


# -- what is left behind ----------------------------------------------------------------------------------------------


def test_a_plot_neither_minds_nor_changes_the_settings_of_the_user():
    import matplotlib

    before = (matplotlib.rcParams["font.size"], logging.getLogger("matplotlib").level)
    plain = plot_heatmap(matrix(True, ((0.5, 1.0), (0.6, 1.0))), ("base", "one"), "m").to_inline_svg()
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert plot_heatmap(matrix(True, ((0.5, 1.0), (0.6, 1.0))), ("base", "one"), "m").to_inline_svg() == plain
        assert matplotlib.rcParams["font.size"] == 40
    assert (matplotlib.rcParams["font.size"], logging.getLogger("matplotlib").level) == before


def test_no_state_of_pyplot_and_nothing_heavy_is_used():
    program = (
        "import sys, harness.report.html.write\n"
        "assert not any(one.startswith(('matplotlib', 'jinja2')) for one in sys.modules)\n"
        "from harness.report.html.plots.bars import LengthBin, plot_length_histogram\n"
        "plot_length_histogram([LengthBin(0, 1, 2, False)], 'a', 'b').to_svg_file()\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_names_that_look_like_formulas_or_hide_things_are_text():
    plot = plot_heatmap(matrix(True, ((1.0, 2.0),), ("$\\frac{$", "\u202e\x1b\uffff<b>")), ("base",), "m")
    assert {"$\\frac{$", "\\u202e␛�<b> *"} <= set(texts(plot))
    html_reader.parse(plot.to_svg_file().partition("?>")[2])


@pytest.mark.parametrize("scheme", [svg_canvas.LIGHT_COLORS, svg_canvas.DARK_COLORS])
def test_text_and_marks_stand_out_from_what_is_behind_them(scheme):
    def luminance(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        low, high = sorted((luminance(scheme[one]), luminance(scheme[other])))
        return (high + 0.05) / (low + 0.05)

    for behind in ("paper", "surface"):
        for text in ("ink", "muted", "accent", "gain", "loss"):
            assert contrast(text, behind) >= 4.5, f"{text} on {behind} (WCAG 2.2, 1.4.3)"
        for mark in svg_canvas.SERIES_NAMES:
            assert contrast(mark, behind) >= 3, f"{mark} on {behind} (WCAG 2.2, 1.4.11)"


def test_both_schemes_have_the_same_names_and_no_two_stand_ins_are_alike():
    assert list(svg_canvas.LIGHT_COLORS) == list(svg_canvas.DARK_COLORS)
    assert len(set(svg_canvas.PLACEHOLDER_COLORS.values())) == len(svg_canvas.LIGHT_COLORS)
    assert all(
        re.fullmatch("#[0-9a-f]{6}", one)
        for one in [*svg_canvas.LIGHT_COLORS.values(), *svg_canvas.DARK_COLORS.values()]
    )
