"""Upload and download folders: the stores, the files that are sent, the model card."""
