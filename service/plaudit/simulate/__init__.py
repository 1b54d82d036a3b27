"""Simulated people: a process apart that asks, rates and judges with a gold preference that training cannot see."""
