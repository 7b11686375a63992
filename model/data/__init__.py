"""Training data: pairs from clicks, examples from notes."""
