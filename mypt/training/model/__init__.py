"""The model of a run: built or loaded, adapted, frozen, compiled, counted."""
