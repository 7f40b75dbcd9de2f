"""Intervals, significance tests and forgetting measures, as functions of numbers."""
