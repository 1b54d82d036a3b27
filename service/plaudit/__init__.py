"""Plaudit: an online feedback service for deployed assistants."""

__version__ = "0.1.0"
