"""Self-contained HTML pages of runs, experiments and comparisons."""
