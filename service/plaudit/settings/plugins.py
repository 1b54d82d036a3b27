"""`plugins.*`: domains."""

from __future__ import annotations

from pydantic import Field

from plaudit.settings.section import Section


class PluginSettings(Section):
    """Domains."""

    allow: tuple[str, ...] | None = None
    """Domains that may load; unset is all that are installed, empty is none."""
    budget_seconds: float = Field(default=5.0, ge=0.01, le=600)
    """Longest call of a domain's member; a longer one fails that request, record or turn, and the thread is left."""
