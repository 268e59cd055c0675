"""Read text files, and clean and deduplicate their documents."""
