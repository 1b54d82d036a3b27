"""Recommendation as a domain of Plaudit: a slate of retrieved items for a user whose recent events are known."""
