"""Erasure: what was removed leaves the store's files and the snapshots too, and a search of all files shows it."""
