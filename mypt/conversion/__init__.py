"""Models in other architectures, and the original MyPT's files in today's format."""
