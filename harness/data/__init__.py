"""The data room: from raw rows to the tokenised rows of each stage, in order, and the held-out rows of each suite.

Nothing here knows a model. A run begins with `prepare`; what it returns is proven.
"""

from __future__ import annotations

from harness.data.corpus import examples
from harness.data.findings import Findings, find
from harness.data.mixture import lay, sizes
from harness.data.preparation import Prepared, prepare

__all__ = ["Findings", "Prepared", "examples", "find", "lay", "prepare", "sizes"]
