"""Methods that minimise the interference between task vectors, without data."""
