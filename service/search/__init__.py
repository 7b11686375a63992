"""Search: from one request for related notes to its answer, whatever the way in."""
