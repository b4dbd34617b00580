"""A run's configuration: where Hydra finds it, how it is composed, and what follows from it."""
