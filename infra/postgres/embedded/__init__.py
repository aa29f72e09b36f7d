"""PostgreSQL from a wheel, started and stopped with the program."""
