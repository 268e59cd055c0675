"""Serve a local web page to try a model, or two side by side."""
