"""Runs the model: base, adapters, continuous batching."""
