"""The event store: decide, append, read and follow the log."""
