"""Signals, NaN or infinite losses, loss spikes."""
