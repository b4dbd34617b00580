"""Rewards: problems of arithmetic and reasoning, and how a response to a problem is scored."""
