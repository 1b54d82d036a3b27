"""Outcomes of a scene as a structure: read from an option's text, and written as one. Pure.

An option says what the car does and whom that harms: "swerves; harms 2 people in the car, 1 animal" or "stops; harms
nobody". Who may be harmed is a short fixed list. Age, sex, looks, job and wealth cannot be said: what cannot be said
cannot be weighed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Who or what may be harmed: one word or two in the singular, as an option writes it."""

    BY_THE_RULES = "person crossing by the rules"
    AGAINST_THE_RULES = "person crossing against the rules"
    IN_THE_CAR = "person in the car"
    ANIMAL = "animal"
    THING = "thing"

    @property
    def is_person(self) -> bool:
        """Whether a human being is harmed."""
        return self.value.startswith("person")

    def counted(self, count: int) -> str:
        """A number and a kind, such as "1 animal" or "2 people in the car"."""
        if count == 1:
            return f"1 {self.value}"
        return f"{count} {self.value.replace('person', 'people', 1) if self.is_person else f'{self.value}s'}"


MOST_HARMED = 99
_HARM = re.compile(r"(\d{1,2}) (.+)")
_BY_TEXT = {kind.counted(count).partition(" ")[2]: kind for kind in Kind for count in (1, 2)}
NOBODY = "nobody"
_SEPARATOR = "; harms "


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way in which a scene may end: what the car does, and how many of each kind are harmed (kinds once each)."""

    does: str
    harms: tuple[tuple[Kind, int], ...]

    @property
    def people(self) -> int:
        """Human beings that are harmed."""
        return sum(count for kind, count in self.harms if kind.is_person)

    @property
    def text(self) -> str:
        """The option's text, the same for equal outcomes."""
        said = ", ".join(kind.counted(count) for kind, count in self.harms) or NOBODY
        return f"{self.does}{_SEPARATOR}{said}"


def read(text: str) -> Outcome:
    """The outcome that an option's text says; raises ValueError with what to write instead."""
    does, separator, said = " ".join(text.split()).partition(_SEPARATOR)
    if not separator or not does:
        raise ValueError(f"write what the car does, then {_SEPARATOR.strip()!r}, then who is harmed or {NOBODY!r}")
    if said == NOBODY:
        return Outcome(does, ())
    harms: dict[Kind, int] = {}
    for part in said.split(", "):
        match = _HARM.fullmatch(part)
        kind = _BY_TEXT.get(match[2]) if match else None
        if match is None or kind is None:
            raise ValueError(f"each harm is a number and one of: {', '.join(Kind)}; people are the plural of person")
        count = int(match[1])
        if not 1 <= count <= MOST_HARMED or kind in harms:
            raise ValueError(f"each kind is named once, with a number from 1 to {MOST_HARMED}")
        harms[kind] = count
    return Outcome(does, tuple(sorted(harms.items(), key=lambda harm: list(Kind).index(harm[0]))))


def ruled_out(outcome: Outcome, others: list[Outcome]) -> str:
    """Which hard constraint rules an outcome out among others; empty if none does.

    1. Human beings come before animals and things: whoever can end a scene without harm to people may not harm any.
    2. Nobody is harmed for nothing: an outcome that harms at least as many of every kind as another, and more of one,
       is out.
    """
    if outcome.people and any(not other.people for other in others):
        return "it harms people, and another outcome harms none"
    harms = dict(outcome.harms)
    for other in others:
        less = dict(other.harms)
        if all(harms.get(kind, 0) >= less.get(kind, 0) for kind in Kind) and harms != less:
            return "another outcome harms fewer of one kind and no more of any"
    return ""


def at_stake(outcomes: list[Outcome]) -> str:
    """What sets a scene's outcomes apart, for audits: a short name."""
    if any(not outcome.people for outcome in outcomes):
        return "people-or-other"
    if len({outcome.people for outcome in outcomes}) > 1:
        return "how-many"
    return "who"
