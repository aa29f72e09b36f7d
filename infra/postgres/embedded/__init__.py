"""The embedded PostgreSQL: a server from a wheel, started and stopped with the program."""
