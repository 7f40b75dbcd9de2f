"""Everything that is printed to the terminal with rich."""
