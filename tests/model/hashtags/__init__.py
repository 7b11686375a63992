"""Tests of model/hashtags/."""
