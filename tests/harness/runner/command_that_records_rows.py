"""`python -m harness` that records which process writes rows, and the rows that each process has; run by a test.

python command_that_records_rows.py FOLDER WORD…

FOLDER/writes.jsonl has [rank, source] for each source that a model answers. FOLDER/rows-<rank>-<stage>.json has the
tokens and labels of the rows that the process trains on in a stage, and of those that mitigations have for themselves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from harness.cli.main import main


def record(folder: Path) -> None:
    """Record what the model writes, and the rows of each stage before it is trained."""
    from harness.evaluation.written_responses import PromptRowsOfModel
    from harness.runner.stage_loop import StageLoop

    rank = int(os.environ["RANK"])
    write, train = PromptRowsOfModel.write_responses, StageLoop.train_or_load_stage

    def recorded_write(self, model, **settings):
        with (folder / "writes.jsonl").open("a") as file:
            file.write(json.dumps([rank, self.source]) + "\n")
        return write(self, model, **settings)

    def recorded_train(self, staged_model, stage_index, totals):
        own = self.context.written_rows.get(stage_index, {})
        rows = {
            "trained": tokens(self.context.stage_data(stage_index).rows),
            **{f"{name}, {source}": tokens(rows) for name, by in own.items() for source, rows in by.items()},
        }
        (folder / f"rows-{rank}-{stage_index}.json").write_text(json.dumps(rows))
        return train(self, staged_model, stage_index, totals)

    PromptRowsOfModel.write_responses, StageLoop.train_or_load_stage = recorded_write, recorded_train


def tokens(rows) -> list:
    """Return [tokens, labels] of each row."""
    return [[list(map(int, row.input_ids)), list(map(int, row.labels))] for row in rows]


if __name__ == "__main__":
    record(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
