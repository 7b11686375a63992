"""Who calls, and what the caller may do: principals, API keys, quotas."""
