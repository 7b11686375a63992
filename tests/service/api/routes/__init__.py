"""The HTTP interface, against a service that really runs."""
