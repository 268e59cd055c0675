"""HF Trainer with MyPT's stream, evaluation and saves."""
