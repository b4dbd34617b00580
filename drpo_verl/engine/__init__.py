"""Offline engines: the device they run on, a process for each, and how vLLM is started and asked there."""
