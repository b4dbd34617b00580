"""A grid of real training runs: planned in a file, run one after the other, and gathered into one table."""
