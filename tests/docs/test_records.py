"""Every decision has its own number, and every release each section of the changelog once."""

from __future__ import annotations

from support.paths import ROOT


def test_decisions_are_numbered_once_and_without_gaps():
    files = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(file.name[:3]) for file in files] == list(range(1, len(files) + 1))
    assert [
        file.name for file in files if not file.read_text(encoding="utf-8").startswith(f"# {file.name[:3]}: ")
    ] == []


def test_each_release_has_each_section_of_the_changelog_once():
    for release in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        sections = [line for line in release.splitlines() if line.startswith("### ")]
        assert len(sections) == len(set(sections)), release.splitlines()[0]
