"""What a finished run has computed, for an exact comparison, and what a round has found."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMED = ("seconds", "tokens_per_second", "memory", "phases")
"""Keys whose values differ between two equal runs."""


def snapshot(run: Path) -> dict[str, str]:
    """Return file -> digest of what a run or experiment has computed: weights, scores, answers and logged steps."""
    digests = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if not file.is_file() or "/checkpoints/" in f"/{name}":
            continue
        if file.suffix == ".safetensors":
            digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif file.name in ("scores.json", "trained.json") or (file.suffix == ".json" and "/evaluations/" in name):
            digests[name] = _digest(json.loads(file.read_text()))
        elif file.suffix == ".jsonl":
            digests[name] = _digest([json.loads(line) for line in file.read_text().splitlines()])
    return digests


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return the files that differ, are missing or are additional."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(_untimed(value), sort_keys=True).encode()).hexdigest()


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(element) for key, element in value.items() if key not in TIMED}
    return [_untimed(element) for element in value] if isinstance(value, list) else value


@dataclass
class Section:
    """The tries of one kind of fault.

    Attributes:
        name: What was tried.
        tries: How often.
        counts: Outcome -> how often.
        failures: A line for each try that ended as it must not.
    """

    name: str
    tries: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def add(self, outcome: str, failure: str = "") -> None:
        """Count a try."""
        self.tries += 1
        self.counts[outcome] += 1
        self.seconds = time.monotonic() - self._started
        if failure:
            self.failures.append(failure)

    def restart(self) -> None:
        """Forget what was counted."""
        self.tries = 0
        self.counts.clear()
        self.failures.clear()


def format_table(sections: list[Section]) -> str:
    """Return the sections as a Markdown table."""
    lines = ["| fault | tries | outcomes | failures |", "|---|---:|---|---:|"]
    for section in sections:
        outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(section.counts.items()))
        lines.append(f"| {section.name} | {section.tries:,} | {outcomes} | {len(section.failures):,} |")
    return "\n".join(lines)
