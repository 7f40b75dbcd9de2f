"""`python -m harness` with one fault in one process, at one step; run by a test.

python command_with_fault.py FAULT PROCESS UPDATE WORD…
"""

from __future__ import annotations

import os
import sys

from harness.cli.main import main
from harness.errors import RunError

FAULTS = {
    "run error": lambda: RunError("here", "it went wrong", "fix it"),
    "bug": lambda: ValueError("a bug"),
    "interrupt": KeyboardInterrupt,
}


def fail(fault: str, process: int, update: int) -> None:
    """Make the process fail before its `update`-th step."""
    from harness.training.stage_trainer import StageTrainer

    before = StageTrainer.before_optimizer_step
    made = 0

    def wrong(self):
        nonlocal made
        made += 1
        if int(os.environ["RANK"]) == process and made == update:
            raise FAULTS[fault]()
        return before(self)

    StageTrainer.before_optimizer_step = wrong


if __name__ == "__main__":
    fail(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
