"""Tests, in folders named like those of the code that they test."""
