"""`python tests/faults [short|long]`: see the package."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults import round as rounds


def main() -> int:
    """Run a round and print its table."""
    arguments = rounds.parse_arguments()
    counts = rounds.scale(rounds.SHORT if arguments.length == "short" else rounds.LONG, arguments.scale)
    limit = arguments.limit or rounds.LIMITS[arguments.length]
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary) / "faults"
        only = tuple(arguments.only)
        tried = rounds.Round(work, counts, seed=arguments.seed, limit=limit, only=only, record=arguments.record)
        tried.run()
        return rounds.print_round(tried, arguments.table)


sys.exit(main())
