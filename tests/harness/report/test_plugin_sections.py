"""Sections of plugins in the page and the summary of a run."""

from __future__ import annotations

import base64
import types

import pytest
from support import html_reader, run_folders

from harness.interfaces.report_section import ReportPlot, ReportSection, ReportTable
from harness.registry import Registry
from harness.report.html import run_files, write
from harness.report.markdown import format_run_markdown
from harness.report.plugin_sections import collect_sections

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><rect width="3" height="4"/></svg>'
SECTION = ReportSection(
    "Lengths <b>",
    "How long | answers are <script>",
    [ReportTable(("suite", "words"), [("<i>desk</i>", 3.25), ("chat", None), ("all", 1200)], "Words <u>")],
    [ReportPlot("Words & suites", SVG)],
)


def registry_with(**functions):
    registry = Registry()
    for name, function in functions.items():
        registry.modules[name] = [types.SimpleNamespace(harness_report_sections=function)]
    return registry


@pytest.fixture
def folder(tmp_path):
    return run_folders.write_run(tmp_path / "run")


def test_a_section_is_shown_in_the_page_with_every_text_escaped(folder):
    page = write.write_run_page(folder, [SECTION]).read_text(encoding="utf-8")
    root = html_reader.parse_html(page)
    section = root.find("section", id="plugin-1")
    assert section.find("h2").text == "Lengths <b>"
    assert [cell.text for cell in section.find_all("td")] == ["<i>desk</i>", "3.250", "chat", "–", "all", "1,200"]
    image = section.find("img")
    assert image.attrs["alt"] == "Words & suites"
    assert base64.b64decode(image.attrs["src"].partition(",")[2]).decode() == SVG
    assert "alert(1)" not in page, "scripts of an image do not run, and the page has none of them"
    links = [link.attrs["href"] for link in root.find("nav").find_all("a")]
    assert links[-3:] == ["#plugin-1", "#reproduce", "#files"]


def test_a_section_is_in_the_summary_in_markdown(folder):
    text = format_run_markdown(run_files.load_run_files(folder), [SECTION])
    assert text.endswith(
        "#### Lengths \\<b\\>\n\nHow long \\| answers are \\<script\\>\n\nWords \\<u\\>\n\n"
        "| suite | words |\n| --- | ---: |\n| \\<i\\>desk\\</i\\> | 3.250 |\n| chat | – |\n| all | 1,200 |\n\n"
        "Plot in report.html: Words &amp; suites\n"
    )


def test_a_plugin_that_fails_is_a_warning_and_the_others_have_their_sections(tmp_path):
    def fails(folder):
        raise KeyError("z")

    def exits(folder):
        raise SystemExit(3)

    registry = registry_with(
        acme=fails, beta=lambda folder: [SECTION], gamma=lambda folder: "text", delta=lambda folder: [1], omega=exits
    )
    sections, warnings = collect_sections(registry, tmp_path)
    assert sections == (SECTION,)
    assert warnings == [
        "the report sections of acme are left out: KeyError: 'z'",
        *(
            f"the report sections of {name} are left out: TypeError: harness_report_sections returned something else "
            "than a list of harness.ReportSection"
            for name in ("gamma", "delta")
        ),
        "the report sections of omega are left out: SystemExit: 3",
    ]


def test_tables_and_plots_are_validated_when_they_are_built():
    with pytest.raises(ValueError, match="a row has 1 cells, but there are 2 columns"):
        ReportTable(("a", "b"), [("x",)])
    with pytest.raises(ValueError, match="the root of the SVG is not <svg>"):
        ReportPlot("p", "<html/>")
