"""Raw rows to examples."""
