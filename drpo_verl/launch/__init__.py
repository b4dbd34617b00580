"""Starting a run: the Ray cluster that it joins, and what the terminal shows of it."""
