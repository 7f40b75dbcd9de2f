"""Model and held-out rows → what the model did with each, and the scores drawn from that.

Knows models, suites and metrics by their contracts. Does not know training, tracking or how scores are shown.
"""

from harness.evaluate.suites import evaluate

__all__ = ["evaluate"]
