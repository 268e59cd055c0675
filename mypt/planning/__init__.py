"""What a run will cost and be worth, worked out before it: pure arithmetic, without torch and without files."""
