"""What there is, is documented: every hook, command, component and option; and what the README says, exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pluggy
import pytest

from harness import hookspecs, registry
from harness.cli import main
from harness.interfaces.component import COMPONENT_TYPES, CORE_DISTRIBUTION

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = [
    "run",
    "validate",
    "plan",
    "check",
    "preview",
    "gate",
    "evaluate",
    "score",
    "report",
    "rate",
    "plugins",
    "schema",
    "compare",
    "runs",
    "track",
    "export",
]


@pytest.fixture(scope="module")
def text():
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


@pytest.fixture(scope="module")
def components():
    entries = [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
    return registry.discover_plugins(entries).components


def missing(names, text):
    """Those of the names that stand nowhere as a word of code."""
    code = " ".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code)]


def commands(page):
    """The lines of the code blocks of a page that call `make` or `harness`, without their comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shells = [text for language, text in blocks if language in ("", "bash", "sh", "console")]
    lines = [line.strip().removeprefix("$ ") for block in shells for line in block.splitlines()]
    return [line for line in lines if line.startswith(("make", "harness "))]


def understood(line):
    """Whether the command line can be read, up to a pipe or a redirection."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((index for index, word in enumerate(words) if word in ("|", ">", "&&")), len(words))]
    try:
        main._build_parser().parse_args(words)
    except SystemExit as stopped:  # --help and --version end with 0
        return stopped.code == 0
    return True


def test_every_hook_is_documented(text):
    manager = pluggy.PluginManager("harness")
    manager.add_hookspecs(hookspecs)
    names = [name for name in vars(manager.hook) if name.startswith("harness_")]
    assert len(names) == 15
    assert missing(names, text) == []


def test_every_command_is_documented(text):
    assert missing([f"harness {command}" for command in COMMANDS], text) == []


@pytest.mark.parametrize("kind", COMPONENT_TYPES)
def test_every_component_is_documented(text, components, kind):
    assert missing(components[kind], text) == []


def test_every_option_of_every_mitigation_is_documented(text, components):
    options = {name: missing(component.options, text) for name, component in sorted(components["mitigations"].items())}
    assert {name: keys for name, keys in options.items() if keys} == {}


def test_the_readme_has_the_commands_of_a_newcomer():
    lines = commands(ROOT / "README.md")
    assert any(line.startswith("make run") for line in lines)
    assert any(line.startswith("make test") for line in lines)
    assert any(line.startswith("harness run specs/mixed_sft.json") for line in lines)


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    named = {target for page in pages for target in re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8"))}
    named |= {
        word
        for page in pages
        for line in commands(page)
        if line.startswith("make ")
        for word in shlex.split(line, comments=True)[1:]
        if word.isalpha()
    }
    assert {"run", "test"} <= named
    assert named - targets == set()


def test_every_harness_command_line_that_a_page_shows_is_understood():
    lines = [line for page in PAGES for line in commands(page) if line.startswith("harness ")]
    assert len(lines) >= 3
    assert [line for line in lines if not understood(line)] == []


def test_every_spec_that_a_page_names_exists():
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    named = {name for page in pages for name in re.findall(r"specs/[\w/.-]+\.json", page.read_text(encoding="utf-8"))}
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_relative_link_leads_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_project_has_its_licence_its_changelog_and_its_guide():
    for name in ("LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"):
        assert (ROOT / name).stat().st_size > 100
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
