"""The log: deciding, appending, reading."""
