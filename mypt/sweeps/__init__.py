"""Many runs of one recipe: the trials of a sweep, the rungs of a ladder."""
