"""Report what a checkpoint or a dataset holds, and how two checkpoints differ; no weight is loaded to memory whole."""
