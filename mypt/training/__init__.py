"""From a recipe to a trained model: build, train, finish."""
