"""The site of the documents builds without a warning, and has every page."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_every_page_of_the_documents_is_on_the_site(site):
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("")
        folder = name.parent if name.name in ("README", "index") else name
        assert (site / folder / "index.html").is_file(), path


def test_first_page_in_chinese_is_the_readme(site):
    page = (site / "zh" / "index.html").read_text(encoding="utf-8")
    assert "并且知道模型忘记了什么" in page
    assert 'href="start/"' in page
    assert 'href="../spec/"' in page
    assert "](zh/)" in (site / "llms.txt").read_text(encoding="utf-8")


def test_reference_pages_are_made_from_schema_commands_and_docstrings(site):
    keys = (site / "reference" / "keys" / "index.html").read_text(encoding="utf-8")
    commands = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    python = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert "mitigations.lora.rank" in keys
    assert "usage: harness compare" in commands
    assert "on_stage_start" in python


def test_list_for_language_models_names_every_page(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# harness\n")
    assert "[Forgetting](forgetting/)" in text
    assert "[Chinese data](tutorials/chinese/)" in text


def test_no_page_asks_another_host(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert 'src="http' not in text, path
        assert "fonts.googleapis" not in text, path
