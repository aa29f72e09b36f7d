"""Who calls: API keys, tokens of identity providers, and the log of their accesses."""
