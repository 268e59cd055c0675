"""Read what the original MyPT wrote, as plain values."""
