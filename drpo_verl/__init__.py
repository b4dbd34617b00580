"""DRPO and DPPO trust regions as policy losses for verl, with the whole stack runnable on a CPU."""

__version__ = "0.1.0"
