"""Infra connects: PostgreSQL, Kafka, the processes and everything else outside of this program."""
