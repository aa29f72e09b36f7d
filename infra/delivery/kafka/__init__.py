"""The Kafka publisher."""
