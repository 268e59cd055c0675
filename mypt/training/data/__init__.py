"""The data of a run: sources, text that is prepared or streamed, the stream."""
