"""The Python interface: start runs and read their results. `harness` re-exports it."""
