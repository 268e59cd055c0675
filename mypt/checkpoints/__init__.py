"""Load checkpoints, read their state, and check that they are complete."""
