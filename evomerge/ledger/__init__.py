"""What happened in a study: append-only events in SQLite, and the state as a fold over them."""
