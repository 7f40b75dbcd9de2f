"""Examples to tokens and labels."""
