"""Domain decides: the aggregates, their events and every rule. No I/O, no clock, no framework but eventsourcing."""
