"""Signals, NaN or infinite losses, and loss spikes."""
