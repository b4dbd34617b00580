"""Adapters to verl: each module is one of its seams, and knows nothing of the others."""
