"""The nouns of the registry: states of a release, the state of a channel, and the moves that change it.

Frozen values only; nothing here reads or writes.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from enum import StrEnum

from plaudit.types import Channel


class ReleaseState(StrEnum):
    """Where a release stands: trained -> gated -> live -> retired; any -> rejected; live -> rolled_back."""

    TRAINED = "trained"
    GATED = "gated"
    SHADOW = "shadow"
    CANARY = "canary"
    LIVE = "live"
    RETIRED = "retired"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class ChannelState:
    """Which release a channel serves. `generation` grows by one with every change."""

    channel: Channel
    generation: int
    live: int
    canary: int | None = None
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """One release. `decision_json` is empty before the gate; `skipped` are the states that it passed over."""

    channel: Channel
    version: int
    digest: str
    state: ReleaseState
    created_at: dt.datetime
    decision_json: str = ""
    skipped: tuple[ReleaseState, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One change of a channel, as it stood afterwards."""

    generation: int
    live: int
    at: dt.datetime
    actor: str
    reason: str
    move: str
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What a move left behind: the channel's state, and the release that is live after it."""

    state: ChannelState
    release: ReleaseRow


@dataclass(frozen=True, slots=True)
class Promote:
    """Makes a gated release live; an operator may also take a retired one back into service."""

    version: int

    def __str__(self) -> str:
        """Return the form that the history keeps."""
        return f"promote {self.version}"


@dataclass(frozen=True, slots=True)
class RollBack:
    """Goes back to an earlier live release, by default the last one that was not itself taken back."""

    to_version: int | None = None

    def __str__(self) -> str:
        """Return the form that the history keeps."""
        return "roll back" if self.to_version is None else f"roll back to {self.to_version}"


@dataclass(frozen=True, slots=True)
class Pin:
    """Pins the live release, so that nothing is promoted over it, or unpins it."""

    pinned: bool

    def __str__(self) -> str:
        """Return the form that the history keeps."""
        return "pin" if self.pinned else "unpin"


Move = Promote | RollBack | Pin
