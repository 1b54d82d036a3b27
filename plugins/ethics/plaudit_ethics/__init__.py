"""Plaudit domain: moral dilemmas on the road."""
