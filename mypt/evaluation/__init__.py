"""Exact losses of a model on given data, and what follows from them."""
