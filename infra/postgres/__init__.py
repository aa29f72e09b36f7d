"""Connections to PostgreSQL, migrations, and the embedded server."""
