"""Erasure: removes deleted data from the store's files and the snapshots too, and proves it by a search of all
files."""
