"""Findings about the data: duplicates, contamination, lengths."""
