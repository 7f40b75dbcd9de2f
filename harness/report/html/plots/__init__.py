"""Plots of a report: numbers → vector drawings that follow the page's colours, with text that stays text.

Knows matplotlib, which is imported when a plot is drawn, and no pyplot: no state is shared with anybody's program.
"""

from harness.report.html.plots.canvas import Plot

__all__ = ["Plot"]
