"""Words again: continue a prompt with a trained model."""
