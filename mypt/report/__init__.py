"""One self-contained HTML page about a run: what it was, how it went, what the model writes, how to repeat it."""
