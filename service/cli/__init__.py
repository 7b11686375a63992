"""The processes: the `notellm` command line and the server that it starts."""
