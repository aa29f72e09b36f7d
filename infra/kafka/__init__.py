"""Publishing to Kafka, exactly once."""
