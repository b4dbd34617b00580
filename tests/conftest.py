"""Shared by all tiers. The CPU platform is chosen before anything can import verl."""

from __future__ import annotations

import os

os.environ["VERL_PLATFORM"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
