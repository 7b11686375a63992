"""Tests of model/evaluation/."""
