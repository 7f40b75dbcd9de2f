"""Run one training in several processes: launch, process group, failure handling."""
