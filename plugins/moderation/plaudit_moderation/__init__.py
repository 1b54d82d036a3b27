"""Plaudit domains for moderation: verdicts among ordered categories, their rationales, and audits of what passes."""
