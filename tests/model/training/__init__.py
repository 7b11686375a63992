"""Tests of model/training/."""
