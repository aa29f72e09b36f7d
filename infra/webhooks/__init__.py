"""Webhooks: what their owners see, and how they are sent."""
