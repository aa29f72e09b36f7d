"""Delivery of events to subscribers: CloudEvents, their schemas, Kafka and webhooks."""
