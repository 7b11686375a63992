"""Access control: principals, API keys and quotas."""
