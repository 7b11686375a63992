"""Hashtags of stored notes: their vocabulary, the lexical index that finds notes by shared words, and their ranking as
candidates beside the model's own hashtags."""
