"""Backups: the whole data set of a store as a folder of files, and back."""
