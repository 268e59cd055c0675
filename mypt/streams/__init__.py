"""Token windows in an exact, seeded order, as torch datasets."""
