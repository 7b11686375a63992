"""Tests of service/search/."""
