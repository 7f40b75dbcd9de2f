"""Damage one file of an interrupted run, resume it, and compare it with the undamaged resume.

A damage must be refused in one line, or not change the result.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from faults import command
from faults.kills import UNTRACKED
from faults.results import Section, differences, snapshot


def flip_bit(file: Path) -> None:
    """Flip one bit in the middle of the file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content)


def cut(file: Path) -> None:
    """Keep the first half of the file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_digit(file: Path) -> None:
    """Change one digit after a decimal point, so that JSON stays valid."""
    text = file.read_text()
    places = [i for i in range(1, len(text)) if text[i] in "123456789" and text[i - 1] == "."]
    if places:
        place = places[len(places) // 2]
        file.write_text(text[:place] + str(int(text[place]) % 9 + 1) + text[place + 1 :])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": flip_bit,
    "cut": cut,
    "empty": lambda file: file.write_bytes(b"") and None,
    "missing": lambda file: file.unlink(),
    "digit": change_digit,
    "not UTF-8": lambda file: file.write_bytes(file.read_bytes()[:-2] + b"\xff\xfe\n") and None,
    "nested": lambda file: file.write_text("[" * 100_000) and None,
    "another object": lambda file: file.write_text('{"a": []}\n') and None,
    "a list": lambda file: file.write_text("[]") and None,
    "a pickle": lambda file: file.write_bytes(b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.") and None,
}
BINARY = ("flipped bit", "cut", "empty", "missing", "a pickle")
SPEC = "two-stages"


class DamageRound:
    """Damages of the files of one interrupted run."""

    def __init__(self, bench: Path, work: Path, draw: random.Random) -> None:
        self.bench, self.work, self.draw = bench, work / "damages", draw
        self.base = self.work / "base"

    def prepare(self) -> str:
        """Interrupt a run within its second stage, after a checkpoint; return a failure or ""."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.base.mkdir(parents=True)
        arguments = ["run", self.bench / f"{SPEC}.json", *UNTRACKED]
        counting = self.work / "counting"
        counting.mkdir()
        outcome = command.run(arguments, counting, before=stop_in_stage("b", 5))
        run = command.run_folder(counting)
        if run is None or outcome.code != -9:
            return f"the run to be damaged exits with {outcome.code}: {outcome.text[-300:]}"
        shutil.copytree(counting, self.base, dirs_exist_ok=True)
        outcome, self.expected = self._resume("undamaged", lambda run: None)
        return "" if outcome.code == 0 else f"the undamaged resume exits with {outcome.code}: {outcome.text[-300:]}"

    def targets(self) -> list[tuple[str, str]]:
        """Return (file, damage) pairs in random order, each file at least once before any is repeated."""
        run = command.run_folder(self.base)
        assert run is not None
        files = [str(file.relative_to(run)) for file in sorted(run.rglob("*")) if file.is_file()]
        pairs = []
        for name in files:
            if name.endswith(".lock") or "/model/" in name or "plots" in name:
                continue
            is_binary = name.endswith((".safetensors", ".pt", ".bin", ".pth"))
            kinds = BINARY if is_binary else tuple(kind for kind in DAMAGES if kind != "a pickle")
            pairs += [(self.draw.random(), name, kind) for kind in kinds]
        return [(name, kind) for _, name, kind in sorted(pairs)]

    def damage(self, name: str, kind: str, section: Section) -> None:
        """Damage one file and resume."""
        outcome, found = self._resume("try", lambda run: DAMAGES[kind](run / name))
        label = f"{name}, {kind}"
        if outcome.has_traceback or outcome.code is None or (self.work / "try" / "pwned").exists():
            section.add("failed", f"{label}: exit {outcome.code}: {outcome.text[-400:]}")
        elif outcome.code == 0:
            unequal = differences(self.expected, found)
            section.add("unequal" if unequal else "equal", f"{label}: {unequal[:3]} differ" if unequal else "")
        elif outcome.code in (1, 2) and outcome.error_lines:
            section.add("refused in one line")
        else:
            section.add("failed", f"{label}: exit {outcome.code}: {outcome.text[-300:]}")

    def _resume(self, name: str, act: Callable[[Path], None]) -> tuple[command.Outcome, dict[str, str]]:
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base, folder)
        run = command.run_folder(folder)
        assert run is not None
        act(run)
        outcome = command.run(["run", "--resume", run], folder)
        try:
            found = snapshot(run)
        except (ValueError, OSError):
            found = {}
        return outcome, found


def stop_in_stage(stage: str, step: int) -> Callable[[], None]:
    """Return what makes a command kill itself at a step of a stage."""
    import os
    import signal

    def install() -> None:
        from harness.events import StageStarted, StepLogged
        from harness.registry import Registry

        real_emit, current = Registry.emit, [""]

        def emit(self: Registry, event: object) -> None:
            real_emit(self, event)  # type: ignore[arg-type]
            if isinstance(event, StageStarted):
                current[0] = event.stage.name
            elif isinstance(event, StepLogged) and current[0] == stage and event.step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        Registry.emit = emit  # type: ignore[method-assign,assignment]

    return install
