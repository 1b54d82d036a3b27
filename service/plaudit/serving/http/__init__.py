"""The OpenAI-compatible HTTP door: the same service behind another protocol."""
