"""One file a resource. Handlers parse, call one use-case, and answer."""
