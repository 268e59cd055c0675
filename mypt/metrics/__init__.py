"""Modules of HF's `evaluate` library, loaded by their folder: `evaluate.load("mypt/metrics/bits_per_byte")`."""
