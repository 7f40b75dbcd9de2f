"""The core's own words in a spec: every key that no plugin brings, with its default, range and description.

Defaults stand here and nowhere else. `usual` is the field's usual range: outside it a plan warns.
"""

from __future__ import annotations

from harness.vocabulary.data import CHECKS, CONTAMINATION, NEAR_DUPLICATES, ROWS
from harness.vocabulary.measuring import CONDITION, GATE, SERVER, SUITE
from harness.vocabulary.names import NAME
from harness.vocabulary.running import ARMS, TOP, TRACK
from harness.vocabulary.training import MODEL, TRAIN

__all__ = [
    "ARMS",
    "CHECKS",
    "CONDITION",
    "CONTAMINATION",
    "GATE",
    "MODEL",
    "NAME",
    "NEAR_DUPLICATES",
    "ROWS",
    "SERVER",
    "SUITE",
    "TOP",
    "TRACK",
    "TRAIN",
]
