"""What is logged, described once; and alerts on it. Without torch, so that the tools start at once."""
