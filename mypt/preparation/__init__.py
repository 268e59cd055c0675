"""Text to a dataset directory; and what is made of such directories: more data, subsets, shared text."""
