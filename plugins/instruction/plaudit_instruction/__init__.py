"""Plaudit domain: instruction following. The plugin is in `plugin`, simulated people in `population`."""
