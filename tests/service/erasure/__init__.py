"""Tests of service/erasure/."""
