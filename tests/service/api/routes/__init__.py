"""Tests of service/api/routes/, against a running service."""
