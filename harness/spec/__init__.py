"""Specs: load, validate, fill in defaults, and turn into a plan."""
