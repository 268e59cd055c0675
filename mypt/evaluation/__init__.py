"""How good a model is on given data, exactly."""
