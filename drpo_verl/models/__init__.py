"""Models: the small policies that are built here, and what a name, a folder or a checkpoint stands for."""
