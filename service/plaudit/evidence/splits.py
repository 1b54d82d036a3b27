"""Which raters and prompt groups train, gate or calibrate: a salted hash sorts them once and for ever.

The salt is the channel's and never changes; people who ask or rate do not know it. The rater decides which model may
learn from an event, the prompt group decides what may be rolled out and what the gate asks. Pure.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import TypeAlias

_SPAN = 2**64


class Split(StrEnum):
    """What a rater or a prompt group serves."""

    TRAIN = "train"
    GATE = "gate"
    CALIBRATION = "calibration"


# Splits with their upper bounds in the unit interval, in order.
Bounds: TypeAlias = tuple[tuple[float, Split], ...]
_RATERS = ((0.60, Split.TRAIN), (0.80, Split.GATE), (1.0, Split.CALIBRATION))
_GROUPS = ((0.75, Split.TRAIN), (1.0, Split.GATE))
_GROUPS_FEW_RATERS = ((0.70, Split.TRAIN), (0.85, Split.GATE), (1.0, Split.CALIBRATION))


def rater_unit(salt: bytes, who: str) -> float:
    """A rater's number in [0, 1), for ever."""
    return _unit(salt, b"rater", who)


def group_unit(salt: bytes, group: str) -> float:
    """A prompt group's number in [0, 1), for ever."""
    return _unit(salt, b"group", group)


def rater_bounds() -> Bounds:
    """Which part of the unit interval is which split of raters."""
    return _RATERS


def group_bounds(few_raters: bool = False) -> Bounds:
    """Which part of the unit interval is which split of prompt groups."""
    return _GROUPS_FEW_RATERS if few_raters else _GROUPS


def rater_split(salt: bytes, who: str) -> Split:
    """The split of a rater (`StoredEvidence.who`): train 60%, gate 20%, calibration 20%."""
    return _split_at(rater_unit(salt, who), rater_bounds())


def group_split(salt: bytes, group: str, few_raters: bool = False) -> Split:
    """The split of a prompt group: train 75%, gate 25%; with few_raters 70%, 15% and calibration 15%."""
    return _split_at(group_unit(salt, group), group_bounds(few_raters))


def _unit(salt: bytes, what: bytes, name: str) -> float:
    # `what` keeps a rater and a group of the same name apart; the salt's length keeps (salt, name) unambiguous.
    digest = hashlib.sha256(b"plaudit split %b %d\0%b%b" % (what, len(salt), salt, name.encode()))
    return int.from_bytes(digest.digest()[:8], "big") / _SPAN


def _split_at(unit: float, bounds: Bounds) -> Split:
    for bound, split in bounds[:-1]:
        if unit < bound:
            return split
    return bounds[-1][1]
