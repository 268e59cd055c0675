"""A module of HF's `evaluate` library, which loads it from this folder."""
