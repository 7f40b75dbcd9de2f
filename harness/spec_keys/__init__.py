"""JSON Schemas of the core's spec keys, with their defaults and descriptions."""
