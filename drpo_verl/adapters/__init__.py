"""Adapters to verl: one module for each of its seams."""
