"""What is verified of a whole run before it costs anything: batch arithmetic, memory, lengths, files."""
