"""Plaudit domains that do as little as the contract allows: one of completions, one of choices."""
