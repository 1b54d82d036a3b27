"""What the join leaves out because it has ended: records beyond retention, whatever log still has them.

Enters: decoded records within the join's transaction. Leaves: those that may be kept. A log is read again after a
reset, and Kafka keeps records for as long as its topics are told to: what was deleted must not come back from there.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable

from plaudit.eventlog.codec import Retraction
from plaudit.types import Channel, Feedback, Interaction

RETENTION = "retention"


class Forgotten:
    """Decides about records. `days`: a channel's retention in days, 0 for ever."""

    def __init__(self, days: Callable[[Channel], float] = lambda _: 0.0) -> None:
        self._days = days

    def too_old(self, said: Interaction | Feedback | Retraction, now: dt.datetime) -> bool:
        """Whether its channel's retention has ended it."""
        days = self._days(said.channel)
        moment = said.completed_at if isinstance(said, Interaction) else said.accepted_at
        return bool(days) and moment < now - dt.timedelta(days=days)
