"""The store: notes, vectors and the change log in Redis, from which everything else is derived."""
