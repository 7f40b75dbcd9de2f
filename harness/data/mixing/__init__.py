"""Tokenized rows to what each stage trains, in order."""
