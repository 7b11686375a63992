"""Hashtags of stored notes: as a vocabulary, found by shared words, and as candidates beside what the model writes."""
