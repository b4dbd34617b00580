"""Data for verl's trainer: the papers' data sets, from the Hugging Face hub or a local copy, and generated problems."""
