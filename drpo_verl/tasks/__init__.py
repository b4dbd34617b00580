"""Small tasks and policies that make RL post-training measurable on a CPU: problems, reward, models."""
