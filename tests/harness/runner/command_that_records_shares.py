"""`python -m harness` that records which process measures which items; run by a test.

python command_that_records_shares.py FOLDER WORD…

FOLDER/shares-<rank>.jsonl has [stage, suite, kind of measurement, item] for each item that the process measures.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from harness.cli.main import main


def record(file: Path) -> None:
    """Record each measured item."""
    from harness.evaluation import evaluate, shared_measurement

    measure = shared_measurement.measure_share

    def recorded_measure(context, create_measurement, todo, on_item):
        def recorded_item(index, fields):
            with file.open("a") as stream:
                kind = create_measurement.__name__
                stream.write(json.dumps([context.stage, context.suite.name, kind, index]) + "\n")
            on_item(index, fields)

        measure(context, create_measurement, todo, recorded_item)

    evaluate.measure_share = shared_measurement.measure_share = recorded_measure


if __name__ == "__main__":
    record(Path(sys.argv[1]) / f"shares-{os.environ['RANK']}.jsonl")
    sys.exit(main(sys.argv[2:]))
