"""Which hashtags may be suggested, which are known, and what those of near notes add."""
