"""What is in a checkpoint, and whether all of it is there."""
