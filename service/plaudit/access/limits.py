"""How much a key, a tenant and a rater may send: token buckets, one for each, and how many raters a handle may have.

What enters: names and settings. What leaves: nothing, RateLimited with the time after which there is room again, or
TooManyRaters. A bucket holds as much as a minute's share, so that a pause may be made up for. Counts are this
replica's own: behind N replicas a limit is up to N times as wide. Memory is bounded: of more than 100,000 names the
least recently used are forgotten.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from plaudit.errors import RateLimited, TooManyRaters
from plaudit.settings import LimitSettings

_MOST_NAMES = 100_000


class Buckets:
    """A token bucket per name; 0 per minute is no limit."""

    def __init__(self, whose: str, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._whose, self._per_minute, self._clock = whose, per_minute, clock
        self._per_second = per_minute / 60.0
        self._most = max(1.0, per_minute)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many
        self._lock = threading.Lock()

    def take(self, name: str) -> None:
        """Takes one token; raises RateLimited if there is none."""
        if not self._per_minute or not name:
            return
        now = self._clock()
        with self._lock:
            tokens, at = self._levels.pop(name, (self._most, now))
            tokens = min(self._most, tokens + (now - at) * self._per_second)
            missing = 1.0 - tokens
            self._levels[name] = (tokens if missing > 0 else tokens - 1.0, now)
            if len(self._levels) > _MOST_NAMES:
                self._levels.popitem(last=False)
        if missing > 0:
            error = RateLimited(
                f"this {self._whose} has sent more than {self._per_minute:g} per minute; "
                f"wait {missing / self._per_second:.1f} s",
                whose=self._whose,
                per_minute=f"{self._per_minute:g}",
            )
            error.retry_seconds = missing / self._per_second
            raise error


class Limits:
    """All limits of a server."""

    def __init__(self, settings: LimitSettings) -> None:
        self._keys = Buckets("key", settings.key_per_minute)
        self._tenants = Buckets("tenant", settings.tenant_per_minute)
        self._raters = Buckets("rater", settings.rater_per_minute)
        self._most_raters = settings.raters_per_handle
        self._raters_of: OrderedDict[str, set[str]] = OrderedDict()
        self._lock = threading.Lock()

    def key(self, name: str) -> None:
        """One call, or one item of a stream, of a caller; raises RateLimited."""
        self._keys.take(name)

    def tenant(self, tenant: str) -> None:
        """One request or act of a tenant; raises RateLimited."""
        self._tenants.take(tenant)

    def rater(self, tenant: str, interaction_id: str, rater: str) -> None:
        """One act of a rater (a pseudonym; empty: nobody) on an interaction; raises RateLimited or TooManyRaters."""
        if not rater:
            return
        self._raters.take(f"{tenant}/{rater}")
        if not self._most_raters:
            return
        with self._lock:
            known = self._raters_of.pop(interaction_id, set())
            self._raters_of[interaction_id] = known
            if rater not in known and len(known) >= self._most_raters:
                raise TooManyRaters(
                    f"{self._most_raters} raters have given feedback on this interaction, its limit "
                    "(access.limits.raters_per_handle); those may go on",
                    limit=self._most_raters,
                )
            known.add(rater)
            if len(self._raters_of) > _MOST_NAMES:
                self._raters_of.popitem(last=False)
