"""General helpers: formatting, JSON files, redaction, checksums, the model cache."""
