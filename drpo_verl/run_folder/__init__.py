"""What a run leaves in its folder: metrics, picture, worst tokens, environment."""
