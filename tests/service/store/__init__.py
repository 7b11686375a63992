"""Tests of service/store/."""
