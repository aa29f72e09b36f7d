"""The keys that secrets are sealed under."""
