"""Routes, one file per resource. Handlers parse the request, call one use case, and answer."""
