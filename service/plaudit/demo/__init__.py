"""The demo: the whole loop as separate processes on one machine, with simulated people, and an honest report."""
