"""Static merges of one set of experts side by side: tuned alike, reported on held-out items."""
