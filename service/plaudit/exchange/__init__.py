"""Preferences as other tools keep them, in and out: JSON Lines with the columns that TRL documents."""
