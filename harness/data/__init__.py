"""The data room: from raw rows to the tokenised rows of each stage, in order, and the held-out rows of each suite.

Nothing here knows a model. A run begins with `prepare`; what it returns is proven.
"""

from __future__ import annotations

from harness.data.forms import examples
from harness.data.preparation import Prepared, prepare

__all__ = ["Prepared", "examples", "prepare"]
