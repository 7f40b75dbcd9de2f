"""The pages in headless Chromium: no console message, no request, and a layout that fits a phone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support import chromium, example_run, run_folders

from harness.report.html import comparison_page, write

SIZES = ((390, False), (1280, True))


@pytest.fixture(scope="module")
def browser():
    program = chromium.find_browser()
    if program is None:
        pytest.skip(f"Chromium is not installed (looked for {', '.join(chromium.PROGRAM_NAMES)})")
    with chromium.Browser(program) as running_browser:
        yield running_browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> page of a run, an experiment, a comparison, and a run with long and hostile names and texts."""
    root = tmp_path_factory.mktemp("pages")
    gate = [run_folders.gate_condition("helpdesk/rougeL", gains_at_least=0.1)]
    run = run_folders.write_run(root / "run", stages=3, gate=gate)
    scores = {f"{suite}/rougeL": 0.4 for suite in ("helpdesk", "general")}
    lines = [
        {"step": step, "scores": scores, "combined": 0.1, "best": step == 40, "kept": step == 40} for step in (40, 80)
    ]
    (run / "stages/stage-2/evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pages_by_name = {"run": write.write_run_page(run)}
    pages_by_name["experiment"] = write.write_experiment_page(run_folders.write_experiment(root / "sweep"))
    long = "x" * 300
    spec = run_folders.run_spec(name=long, template={long: run_folders.HOSTILE_TEXT})
    hostile = run_folders.write_run(
        root / "hostile", spec=spec, text=lambda text: f"{text} {run_folders.HOSTILE_TEXT} {long}"
    )
    report = json.loads((hostile / "report.json").read_text())
    text = (
        json.dumps(report)
        .replace('"helpdesk"', json.dumps(run_folders.HOSTILE_TEXT + long))
        .replace('"rougeL"', json.dumps(long))
    )
    (hostile / "report.json").write_text(text)
    pages_by_name["hostile"] = write.write_run_page(hostile)
    columns = tuple(
        comparison_page.RunColumn(f"a-run-with-a-long-name-{number}" * 3, {"mode": "mixed"}) for number in range(6)
    )
    comparison = comparison_page.ComparisonPage(
        "six", columns, (), {"mitigations.mixing.share": ("0.1",) * 6}, notes=(long,)
    )
    pages_by_name["comparison"] = write.write_comparison_page(comparison, root / "six.html")
    return pages_by_name


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), SIZES)
@pytest.mark.parametrize("name", ["run", "experiment", "hostile", "comparison"])
def test_page_logs_nothing_requests_nothing_and_fits_the_width(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.console_messages == []
    assert [url for url in browser.requested_urls if url != "data:,"] == [pages[name].resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(
        "[...document.querySelectorAll('svg.plot')].every(plot => plot.getBoundingClientRect().width > 250)"
    )
    assert browser.evaluate("document.querySelectorAll('script').length") == 1


def test_browser_reports_console_messages_and_requests(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.log('here'); fetch('http://127.0.0.1:9/x').catch(() => {}); missing()</script>")
    browser.open(bad)
    assert any("here" in message for message in browser.console_messages)
    assert any("missing is not defined" in message for message in browser.console_messages)
    assert any(url.startswith("http://127.0.0.1:9") for url in browser.requested_urls)


def test_injected_script_does_not_run(browser, pages, tmp_path):
    page = pages["run"].read_text(encoding="utf-8")
    injected = tmp_path / "injected.html"
    payload = "<script>document.title = 'ran'</script><img src='http://127.0.0.1:9/x.png' onerror='document.title = 1'>"
    injected.write_text(page.replace("</main>", f"{payload}</main>"), encoding="utf-8")
    browser.open(injected)
    assert browser.evaluate("document.title") == "mixed-sft · report"
    assert any("Content Security Policy" in message for message in browser.console_messages), (
        "the browser reports what it refused"
    )


SHOWN = "[...document.querySelectorAll('#item-list article')].map(one => one.querySelector('.question dd').textContent)"
COUNT = "document.getElementById('item-count').textContent"


def set_filter(browser, name, value):
    """Set a control of the item browser and wait until the list is updated."""
    browser.evaluate(
        f"(() => {{ const form = document.getElementById('item-filter');"
        f" form.elements.{name}.value = {json.dumps(value)};"
        f" form.elements.{name}.dispatchEvent(new Event('input', {{bubbles: true}})); return true }})()"
    )
    browser.evaluate("new Promise(done => setTimeout(() => done(true), 400))")


@pytest.mark.slow
def test_items_are_filtered_searched_and_shown_in_parts(browser, tmp_path):
    evaluations = example_run.made_evaluations(1, 2500)
    cut = tuple(
        replace(item, answer="", finish="empty")
        if index == 7
        else replace(item, finish="length")
        if index < 3
        else item
        for index, item in enumerate(evaluations[1][1].items)
    )
    evaluations[1] = (evaluations[1][0], replace(evaluations[1][1], items=cut))
    page = write.write_run_page(run_folders.write_run(tmp_path / "many", evaluations=evaluations))
    browser.open(page, width=390)
    assert browser.evaluate(COUNT) == "5,000 of 5,000 items"
    assert len(browser.evaluate(SHOWN)) == 20
    browser.click("#item-more")
    assert len(browser.evaluate(SHOWN)) == 40
    set_filter(browser, "show", "worse")
    assert browser.evaluate(COUNT) == "1,250 of 5,000 items"
    assert "0.5 → 0.45 ✗ worse" in browser.evaluate("document.querySelector('#item-list .item-heading').textContent")
    set_filter(browser, "show", "better")
    assert browser.evaluate(COUNT) == "3,750 of 5,000 items"
    set_filter(browser, "show", "cut")
    assert browser.evaluate(SHOWN) == ["question 0?", "question 1?", "question 2?"]
    set_filter(browser, "show", "empty")
    assert browser.evaluate(SHOWN) == ["question 7?"]
    set_filter(browser, "show", "changed")
    assert browser.evaluate(COUNT) == "2,501 of 5,000 items", "all of helpdesk, and the empty answer of general"
    set_filter(browser, "suite", "0")
    assert browser.evaluate(COUNT) == "2,500 of 5,000 items"
    set_filter(browser, "search", "QUESTION 249 2499?")
    assert browser.evaluate(SHOWN) == ["question 2499?"]
    assert browser.evaluate("document.getElementById('item-more').hidden")
    assert browser.console_messages == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_flips_of_scores_that_are_0_or_1_are_named(browser, tmp_path):
    before, after = [1.0] * 10 + [0.0] * 30, [0.0] * 4 + [1.0] * 36
    evaluations = [
        (example_run.made_evaluation(stage, "helpdesk", values, [20.0 + i for i in range(40)]),)
        for stage, values in enumerate((before, after))
    ]
    browser.open(write.write_run_page(run_folders.write_run(tmp_path / "flips", evaluations=evaluations)))
    options = "[...document.querySelectorAll('#item-filter option')].map(option => option.textContent)"
    assert {"right → wrong", "wrong → right"} <= set(browser.evaluate(options))
    set_filter(browser, "show", "worse")
    assert browser.evaluate(COUNT) == "4 of 40 items"
    assert "1 → 0 ✗ right → wrong" in browser.evaluate("document.querySelector('.item-heading').textContent")


def test_hostile_items_are_shown_as_text(browser, pages):
    page = run_folders.write_run(
        pages["run"].parent.parent / "hostile-items", text=lambda t: run_folders.HOSTILE_TEXT + t
    )
    browser.open(write.write_run_page(page))
    shown = browser.evaluate(SHOWN)
    assert len(shown) == 20
    assert shown[0].startswith("</script><script>alert(1)</script>")
    assert "\\u202e" in shown[0]
    assert browser.console_messages == []


def test_text_and_plots_follow_the_color_scheme(browser, pages):
    def computed_colors():
        text, mark = (
            "document.body",
            "document.querySelector('#loss-axes_1 path[style*=series-1], [id^=loss-] path[style*=series-1]')",
        )
        return [
            browser.evaluate(f"getComputedStyle({text}).backgroundColor"),
            browser.evaluate(f"getComputedStyle({mark}).stroke"),
        ]

    browser.open(pages["run"])
    light = computed_colors()
    browser.open(pages["run"], dark=True)
    dark = computed_colors()
    assert light == ["rgb(250, 250, 249)", "rgb(0, 114, 178)"]
    assert dark == ["rgb(19, 21, 24)", "rgb(86, 180, 233)"]


def test_copy_button_works_on_a_local_file(browser, pages):
    browser.open(pages["run"])
    browser.click("#reproduce summary")
    browser.evaluate("document.addEventListener('copy', () => { window.copied = String(window.getSelection()); })")
    browser.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    )  # as for a page without permission
    browser.click("button[data-copy=spec]")
    browser.evaluate("new Promise(done => setTimeout(done, 50))")
    assert json.loads(browser.evaluate("window.copied")) == json.loads((pages["run"].parent / "spec.json").read_text())
    assert browser.evaluate("document.querySelector('button[data-copy=spec]').textContent") == "Copied"


def test_wide_tables_scroll_on_a_phone(browser, pages):
    browser.open(pages["run"], width=390)
    wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
    assert browser.evaluate(f"{wide}.length") > 0
    assert browser.evaluate(f"{wide}.every(box => getComputedStyle(box).overflowX === 'auto')")
    smallest = "[...document.querySelectorAll('svg.plot text')].map(text => text.getBoundingClientRect().height)"
    assert browser.evaluate(f"Math.min(...{smallest})") >= 7
