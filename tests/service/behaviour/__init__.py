"""Tests of service/behaviour/."""
