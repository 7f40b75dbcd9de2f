"""Record what commands print on a terminal as SVG images for the documents.

Run it from the repository after a change of the output: `python benchmarks/record_terminal.py`. Each command runs as a
user would run it, on a terminal of 100 columns.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
WIDTH = 100

RECORDINGS: Mapping[str, Sequence[str]] = {
    "check": ("check", "specs/mixed_sft.json"),
    "plan": ("plan", "specs/mixed_sft.json"),
}
"""Name of the image -> the words after `harness`."""

_FONT_FACE = re.compile(r"\s*@font-face \{[^}]*\}")
"""Rich links fonts of another host; the font of the reader's terminal serves as well."""


def run_command(words: Sequence[str]) -> str:
    """Return what a command prints to stdout, with the escape sequences of its colors."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "harness.cli", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def render_svg(words: Sequence[str], output: str) -> str:
    """Return an image of a terminal with a command and its output.

    Args:
        words: The words after `harness`.
        output: What it printed, with escape sequences.
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.assemble(("$ ", "dim"), ("harness " + " ".join(words), "bold")))
    console.print(Text.from_ansi(output.rstrip("\n")))
    svg = console.export_svg(title="harness", theme=MONOKAI, unique_id="terminal")
    return "".join(line.rstrip() + "\n" for line in _FONT_FACE.sub("", svg).splitlines())


def main() -> None:
    """Write every image."""
    for name, words in RECORDINGS.items():
        (IMAGES / f"{name}.svg").write_text(render_svg(words, run_command(words)), encoding="utf-8")
        print(IMAGES / f"{name}.svg")


if __name__ == "__main__":
    main()
