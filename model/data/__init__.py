"""Data for training: pairs from clicks, examples from notes, texts to distil from, labels by an encoder or by hand."""
