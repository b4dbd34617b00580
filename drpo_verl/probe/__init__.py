"""Measure an engine pair before training: what one engine samples, scored by the other, and what each method would do.

Sampling and scoring are two processes, one after the other, so that each has the machine's memory to itself.
"""
