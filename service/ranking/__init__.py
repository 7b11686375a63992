"""Ranking: pure functions from candidates to the order of an answer. No I/O, no HTTP, no store, no index."""
