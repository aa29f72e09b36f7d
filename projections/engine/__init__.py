"""The engine of all views: tables, pages of events, the projector, its checkpoints and rebuilds."""
