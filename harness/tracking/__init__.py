"""Log events to MLflow."""
