"""vLLM outside of a training run: its process, and how it is started and asked."""
