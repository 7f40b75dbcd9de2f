"""The one room that knows the order: it calls each room once and tells everybody what happens.

spec → plan → data → proofs → model → evaluate → (train → evaluate) per stage → report. `single` walks one run, `chain`
carries the model through its stages, `experiment` runs the arms of a spec, `folder` knows what a run keeps. Of several
processes that train together one walks; the others follow it (`course`, `following`).
"""

from __future__ import annotations

from harness.run.doors import again, experiment, measure, prove, run
from harness.run.folder import RunFolder
from harness.run.following import follow
from harness.run.preparing import ModelUnreachable, Prepared, find, prepare

__all__ = [
    "ModelUnreachable",
    "Prepared",
    "RunFolder",
    "again",
    "experiment",
    "find",
    "follow",
    "measure",
    "prepare",
    "prove",
    "run",
]
