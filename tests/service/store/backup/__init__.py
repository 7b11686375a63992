"""Backups of real servers, under load, and what is refused."""
