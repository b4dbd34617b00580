"""The probe measures an engine pair before training: what one engine samples is scored by the other.

Sampling and scoring are two processes, one after the other, so that each has the machine's memory to itself.
"""
