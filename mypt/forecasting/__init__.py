"""Predict a long run from short ones: its loss by a ladder of small runs, its forgetting by probes."""
