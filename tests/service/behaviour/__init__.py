"""Tests of behaviour."""
