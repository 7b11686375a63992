"""Search: from a request for related notes to its answer."""
