"""Use-cases about many notes of a tenant at once: read, list, export, follow, remove and import them."""
