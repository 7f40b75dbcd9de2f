"""From raw rows to the tokenized rows of each stage, in order, and the held-out rows of each suite."""
