"""HTTP, and nothing else: routes, the wire's schemas, and status codes."""
