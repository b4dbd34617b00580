"""Models: the small policies that are made here, and what a name, a folder or a checkpoint stands for."""
