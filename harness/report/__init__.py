"""Turn evaluations into the numbers to show: changes, matrices, gates, recommendations."""
