"""Recordings of the terminal: an image has what was printed, and the stored ones show the checks of today."""

from __future__ import annotations

import html
import importlib.util
import re
import sys
from xml.etree import ElementTree

import pytest
from support.paths import ROOT

from harness.runner.data_check import DATA_CHECKS


@pytest.fixture(scope="module")
def record_terminal():
    spec = importlib.util.spec_from_file_location("record_terminal", ROOT / "benchmarks" / "record_terminal.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(svg):
    """Return the text of an image; rich writes spaces as no-break spaces."""
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join(html.unescape("".join(element.itertext())).replace("\xa0", " ") for element in elements)


def test_an_image_has_the_command_and_its_output_and_links_nothing(record_terminal):
    svg = record_terminal.render_svg(["check", "my.json"], "\x1b[32m✓\x1b[0m \x1b[1mrows\x1b[0m a < b\n")
    text = text_of(svg)
    assert "harness check my.json" in text
    assert "✓" in text
    assert "a < b" in text
    assert not re.search(r"url\(\"?http|src=|href=|@font-face", svg)
    assert svg == record_terminal.render_svg(["check", "my.json"], "\x1b[32m✓\x1b[0m \x1b[1mrows\x1b[0m a < b\n")


def test_a_command_runs_with_colors_and_the_width_of_the_image(record_terminal, monkeypatch):
    (words,) = [words for name, words in record_terminal.RECORDINGS.items() if name == "plan"]
    assert words[0] == "plan"
    calls = []
    monkeypatch.setattr(
        record_terminal.subprocess,
        "run",
        lambda command, **options: calls.append((command, options)) or type("Done", (), {"stdout": "out"}),
    )
    assert record_terminal.run_command(words) == "out"
    command, options = calls[0]
    assert command == [sys.executable, "-m", "harness.cli", "plan", "specs/mixed_sft.json"]
    assert {options["env"][name] for name in ("COLUMNS", "FORCE_COLOR")} == {"100", "1"}


def test_the_stored_images_show_every_check_and_the_plan(record_terminal):
    images = {
        name: text_of((record_terminal.IMAGES / f"{name}.svg").read_text()) for name in record_terminal.RECORDINGS
    }
    for name in DATA_CHECKS:
        assert re.search(rf"^{name}\b", images["check"], re.MULTILINE), name
    assert "may run" in images["check"]
    assert "requested share" in images["plan"]
    for name, words in record_terminal.RECORDINGS.items():
        assert "harness " + " ".join(words) in images[name]
