"""Many runs of one recipe: the trials of a sweep."""
