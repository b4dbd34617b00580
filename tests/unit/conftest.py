"""Shared by the unit tests."""

from __future__ import annotations

from hypothesis import settings

# A test is not wrong because the machine had other work for 0.2 s.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")
