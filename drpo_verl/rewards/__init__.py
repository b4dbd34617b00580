"""Rewards: the tasks' problems, and how an answer is judged."""
