"""The processes that share one run: which one this is, how they wait for each other, and how they end together.

One of them is the main one (rank 0): it writes, measures, tracks and speaks. The others train beside it and say
nothing. Knows what a launcher puts into the environment, and torch's process groups; knows no run.

Beside the group that trains there are two roads between the processes. What is shared, and all waiting for the main
process, goes through a gloo group of its own: an evaluation of hours is waited for without a timeout of NCCL's, and
without a GPU that spins. That one of them has failed goes through the launcher's store.
"""

from __future__ import annotations

from harness.ranks.launch import launched, number
from harness.ranks.news import FAREWELL
from harness.ranks.sharing import ALONE, Ranks
from harness.ranks.together import together

__all__ = ["ALONE", "FAREWELL", "Ranks", "launched", "number", "together"]
