"""The wire: what callers send and get, a file for each resource. Field names are fixed; more fields may come."""
