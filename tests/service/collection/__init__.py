"""Tests of service/collection/."""
