"""The pages in a real browser, Chromium without a window: they are quiet, ask for nothing, and fit on a phone."""

from __future__ import annotations

import json

import pytest
from support import chromium, run_folders

from harness.report.html import comparison_page, write

SIZES = ((390, False), (1280, True))


@pytest.fixture(scope="module")
def browser():
    program = chromium.find()
    if program is None:
        pytest.skip(f"there is no Chromium here (looked for {', '.join(chromium.NAMES)})")
    with chromium.Browser(program) as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> page: of a run, an experiment, a comparison, and a run whose every name and text is hostile and long."""
    root = tmp_path_factory.mktemp("pages")
    gate = [run_folders.condition("helpdesk/rougeL", gains_at_least=0.1)]
    run = run_folders.finished(root / "run", stages=3, gate=gate)
    scores = {f"{suite}/rougeL": 0.4 for suite in ("helpdesk", "general")}
    lines = [
        {"step": step, "scores": scores, "combined": 0.1, "best": step == 40, "kept": step == 40} for step in (40, 80)
    ]
    (run / "stages/stage-2/evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    made = {"run": write.write_run_page(run)}
    made["experiment"] = write.write_experiment_page(run_folders.experiment(root / "sweep"))
    long = "x" * 300
    spec = run_folders.spec_of(name=long, template={long: run_folders.NASTY})
    nasty = run_folders.finished(root / "nasty", spec=spec, text=lambda one: f"{one} {run_folders.NASTY} {long}")
    report = json.loads((nasty / "report.json").read_text())
    text = (
        json.dumps(report)
        .replace('"helpdesk"', json.dumps(run_folders.NASTY + long))
        .replace('"rougeL"', json.dumps(long))
    )
    (nasty / "report.json").write_text(text)
    made["hostile"] = write.write_run_page(nasty)
    sides = tuple(
        comparison_page.RunColumn(f"a-run-with-a-long-name-{number}" * 3, {"mode": "mixed"}) for number in range(6)
    )
    given = comparison_page.ComparisonPage("six", sides, (), {"mitigations.mixing.share": ("0.1",) * 6}, notes=(long,))
    made["comparison"] = write.write_comparison_page(given, root / "six.html")
    return made


@pytest.mark.parametrize(("width", "dark"), SIZES)
@pytest.mark.parametrize("name", ["run", "experiment", "hostile", "comparison"])
def test_a_page_is_quiet_asks_for_nothing_and_fits(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.complaints == []
    assert [one for one in browser.requests if one != "data:,"] == [pages[name].resolve().as_uri()]
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(
        "[...document.querySelectorAll('svg.plot')].every(one => one.getBoundingClientRect().width > 250)"
    )
    assert browser.ask("document.querySelectorAll('script').length") == 1


def test_a_complaint_and_a_request_would_be_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.log('here'); fetch('http://127.0.0.1:9/x').catch(() => {}); missing()</script>")
    browser.open(bad)
    assert any("here" in one for one in browser.complaints)
    assert any("missing is not defined" in one for one in browser.complaints)
    assert any(one.startswith("http://127.0.0.1:9") for one in browser.requests)


def test_a_script_that_is_not_ours_does_not_run(browser, pages, tmp_path):
    page = pages["run"].read_text(encoding="utf-8")
    spoiled = tmp_path / "spoiled.html"
    more = "<script>document.title = 'ran'</script><img src='http://127.0.0.1:9/x.png' onerror='document.title = 1'>"
    spoiled.write_text(page.replace("</main>", f"{more}</main>"), encoding="utf-8")
    browser.open(spoiled)
    assert browser.ask("document.title") == "mixed-sft · report"
    assert any("Content Security Policy" in one for one in browser.complaints), "the browser says what it refused"


def test_light_and_dark_follow_the_reader_in_text_and_in_plots(browser, pages):
    def colours():
        text, mark = (
            "document.body",
            "document.querySelector('#loss-axes_1 path[style*=series-1], [id^=loss-] path[style*=series-1]')",
        )
        return [
            browser.ask(f"getComputedStyle({text}).backgroundColor"),
            browser.ask(f"getComputedStyle({mark}).stroke"),
        ]

    browser.open(pages["run"])
    light = colours()
    browser.open(pages["run"], dark=True)
    dark = colours()
    assert light == ["rgb(250, 250, 249)", "rgb(0, 114, 178)"]
    assert dark == ["rgb(19, 21, 24)", "rgb(86, 180, 233)"]


def test_the_spec_is_copied_from_a_file_by_its_button(browser, pages):
    browser.open(pages["run"])
    browser.click("#again summary")
    browser.ask("document.addEventListener('copy', () => { window.copied = String(window.getSelection()); })")
    browser.ask("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as a page without rights sees it
    browser.click("button[data-copy=spec]")
    browser.ask("new Promise(done => setTimeout(done, 50))")
    assert json.loads(browser.ask("window.copied")) == json.loads((pages["run"].parent / "spec.json").read_text())
    assert browser.ask("document.querySelector('button[data-copy=spec]').textContent") == "Copied"


def test_on_a_phone_wide_tables_scroll_in_their_box(browser, pages):
    browser.open(pages["run"], width=390)
    wide = "[...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth)"
    assert browser.ask(f"{wide}.length") > 0
    assert browser.ask(f"{wide}.every(one => getComputedStyle(one).overflowX === 'auto')")
    smallest = "[...document.querySelectorAll('svg.plot text')].map(one => one.getBoundingClientRect().height)"
    assert browser.ask(f"Math.min(...{smallest})") >= 7
