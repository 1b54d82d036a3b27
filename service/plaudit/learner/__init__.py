"""One resumable turn over evidence, and the loop that runs turns."""
