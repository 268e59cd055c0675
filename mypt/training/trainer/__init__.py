"""HF's Trainer with MyPT's stream, evaluation, checked steps and complete checkpoints."""
