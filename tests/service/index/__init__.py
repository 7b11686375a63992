"""Tests of service/index/."""
