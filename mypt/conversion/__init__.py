"""Convert models to other architectures and file formats, and the original MyPT's files to today's."""
