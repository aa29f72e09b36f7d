"""Authentication by API keys and OpenID Connect tokens, administration of keys, and the access log."""
