"""HTTP layer, and nothing else: routes, wire schemas and status codes."""
