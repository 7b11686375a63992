"""The truth: notes, vectors and the change log in Redis."""
