"""What the machine decides of a run: dtype, precision, attention, compiling, batch; and what it can do at most."""
