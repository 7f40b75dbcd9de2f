"""Locate, load and save models."""
