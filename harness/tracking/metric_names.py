"""The names of all metrics in MLflow: one function a naming pattern.

| pattern | meaning |
|---|---|
| `<suite>/<score>` | a score after a stage; step 0 is the base model |
| `<suite>/<score>/delta` | last stage minus base model |
| `forgetting/<score>/<summary>` | a summary of the stage × suite matrix |
| `share/<source>/<unit>` | realized share of a source in a stage |
| `epoch_share/<source>/<unit>` | the same for one epoch |
| `during/<suite>/<score>`, `during/combined` | a mid-stage evaluation |

Training metrics (`loss`, `learning_rate`, …) and statistics of mitigations (`<mitigation>/<key>`), also those of
mid-stage evaluations, keep their names.
"""

from __future__ import annotations


def score_name(suite: str, score: str) -> str:
    """Return the name of a suite's score."""
    return f"{suite}/{score}"


def delta_name(suite: str, score: str) -> str:
    """Return the name of a score's difference to the base model."""
    return f"{score_name(suite, score)}/delta"


def summary_name(score: str, summary: str) -> str:
    """Return the name of a summary of the stage × suite matrix."""
    return f"forgetting/{score}/{summary}"


def share_name(source: str, unit: str, *, of_epoch: bool = False) -> str:
    """Return the name of a source's realized share, in a stage or in one epoch."""
    return f"{'epoch_share' if of_epoch else 'share'}/{source}/{unit}"


def mid_stage_name(score: str) -> str:
    """Return the name of a score `suite/score`, or of `combined`, in a mid-stage evaluation."""
    return f"during/{score}"
