"""Tests of service/ranking/."""
