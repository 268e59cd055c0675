"""TrainerCallbacks: one file, one job."""
