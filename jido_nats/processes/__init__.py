"""Programs as workers: one process group for each session."""
