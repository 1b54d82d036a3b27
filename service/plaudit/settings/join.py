"""`join.*`: the join."""

from __future__ import annotations

from pydantic import Field

from plaudit.settings.section import Section


class JoinSettings(Section):
    """The join."""

    batch_records: int = Field(default=500, ge=1, le=100_000)
    """Records of one transaction."""
    poll_seconds: float = Field(default=0.5, ge=0.01, le=60)
    """Wait for new records."""
    max_wait_seconds: float = Field(default=3600.0, ge=1, le=31_536_000)
    """Feedback whose interaction has not come after this time is rejected as NO_INTERACTION."""
    metrics_port: int = Field(default=9465, ge=0, le=65535)
    """Prometheus port, on serve.host; 0 turns it off."""
