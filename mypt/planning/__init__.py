"""Cost and worth of a run, worked out before it: pure arithmetic, without torch and without files."""
