"""Plans: generation compiled for pods that are not there."""
