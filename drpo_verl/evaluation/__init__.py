"""How often a model is right: avg@k and pass@k on a verl parquet, with vLLM."""
