"""Tests of model/baselines/."""
