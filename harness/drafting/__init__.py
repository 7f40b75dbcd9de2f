"""Draft a spec for one's own files: `harness init`."""
