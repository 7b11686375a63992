"""Tests of service/store/backup/, with real servers and under load."""
