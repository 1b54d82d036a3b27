"""Recognisers of personal data that has no shape, such as names and places: foreign code, found by entry points.

Enters: texts, and which installed recognisers a channel names (`privacy.recognisers`). Leaves: places in the text and
their kinds, checked. What a recogniser raises, a call that takes longer than it may, and places that no text has become
PluginFailed: then the call is refused, because what nobody looked through must go nowhere. One that nobody names is
never imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from itertools import islice
from typing import Protocol, runtime_checkable

from plaudit.errors import Misconfigured, PluginFailed
from plaudit.plugins import made, told
from plaudit.plugins.bounded import BoundedCalls, Exits, Overdue, Overrun
from plaudit.plugins.guarded import Why, place_of
from plaudit.privacy.redaction import Found, Redaction
from plaudit.settings import ChannelPrivacySettings, Settings

ENTRY_POINT_GROUP = "plaudit.recognisers"
MOST_FOUND = 10_000  # in one text
_KIND = re.compile(r"[a-z][a-z_]{0,31}")  # it is a label of a metric and, in capitals, a placeholder


@runtime_checkable
class Recogniser(Protocol):
    """What an entry point's class makes, without arguments."""

    def find(self, text: str) -> Iterable[Found]:
        """Places of personal data, as (first character, behind the last one, kind such as "person")."""


class Recognisers:
    """The recognisers that the settings of any channel name; may be asked from any thread.

    `report` is told of each failure as of a plugin's: domain (none), member, why.
    """

    def __init__(self, settings: Settings, report: Callable[[str, str, str], None] = lambda *_: None) -> None:
        """Raises Misconfigured for a name that is not installed, or that cannot be loaded."""
        names = {name for each in settings.privacies for name in each.recognisers}
        seconds = settings.plugins.budget_seconds
        self._guarded: Mapping[str, _Guarded] = {
            name: _Guarded(name, _loaded(name), seconds, report) for name in sorted(names)
        }

    def redaction(self, privacy: ChannelPrivacySettings) -> Redaction:
        """How a channel with these settings redacts."""
        return Redaction(privacy.redact, tuple(self._guarded[name].find for name in privacy.recognisers))


class _Guarded:
    """A recogniser that cannot hurt its caller."""

    def __init__(self, name: str, inner: Recogniser, seconds: float, report: Callable[[str, str, str], None]) -> None:
        self._name, self._inner, self._report = name, inner, report
        self._calls = BoundedCalls(f"plaudit-recogniser-{name}", seconds)

    def find(self, text: str) -> list[Found]:
        """What it finds, in order, of places that overlap the first; raises PluginFailed."""
        try:
            found = self._calls(lambda: list(islice(self._inner.find(text), MOST_FOUND + 1)))
        except Overdue as late:
            raise self._failed(Why.LATE, f"has not returned within {late.args[0]:.3g} s") from None
        except Overrun as many:
            raise self._failed(Why.HANGS, f"was not called: {many.args[0]} earlier calls have not come back") from None
        except Exits as exits:
            raise self._failed(Why.RAISED, f"raised {exits}, which ends a process") from exits
        # Foreign code: whatever it raises is its failure.
        except Exception as error:
            raise self._failed(Why.RAISED, f"raised {place_of(error)}") from error
        if len(found) > MOST_FOUND or not all(_is_place(each, len(text)) for each in found):
            raise self._failed(Why.UNUSABLE, f"gave what is no place in the text, or more than {MOST_FOUND}")
        return sorted(found)

    def _failed(self, why: Why, what: str) -> PluginFailed:
        member = f"recogniser {self._name}"
        self._report("", member, why)
        said = f"{member} {what}; fix it, or take it out of privacy.recognisers"
        return PluginFailed(said, domain="", member=member, why=why)


def _is_place(found: object, length: int) -> bool:
    match found:
        case (int() as start, int() as end, str() as kind):
            return 0 <= start < end <= length and _KIND.fullmatch(kind) is not None
    return False


def _loaded(name: str) -> Recogniser:
    points = [point for point in entry_points(group=ENTRY_POINT_GROUP) if point.name == name]
    if len(points) != 1:
        known = ", ".join(sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})) or "none"
        why = f"is installed {len(points)} times" if points else f"is not installed (installed: {known})"
        raise Misconfigured(f"the recogniser {name!r} {why}", setting="privacy.recognisers")
    try:
        recogniser = made(points[0])
    except Exception as error:
        message = f"the recogniser {name!r} cannot be loaded: {told(error)}"
        raise Misconfigured(message, setting="privacy.recognisers") from error
    if not isinstance(recogniser, Recogniser):
        raise Misconfigured(f"the recogniser {name!r} has no method find(text)", setting="privacy.recognisers")
    return recogniser
