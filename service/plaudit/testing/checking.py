"""The conformance kit on a plugin that is installed or lies in a folder: what `plaudit plugins check` runs.

Enters: the name of a domain, or the folder of a distribution. Leaves: a row per check (whether it passed, what was
found, what to do). Examples are made up, or are what the domain's simulated people ask, if it has any; a plugin's own
tests know better ones. A check that hangs fails, and the others still run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from plaudit.domain import ENTRY_POINT_GROUP, Declaration, DomainPlugin
from plaudit.errors import Misconfigured, RequestRefused
from plaudit.plugins import facts_of, made, told
from plaudit.plugins.bounded import BoundedCalls, Exits, Overdue, Overrun
from plaudit.testing import examples
from plaudit.testing.conformance import NeedsMore, PluginConformance, checks
from plaudit.types import (
    KIND_OF_ACT,
    Act,
    Action,
    Choice,
    Comment,
    Correction,
    LabelAct,
    Message,
    Option,
    Ranking,
    Rating,
    Request,
    Signal,
    Thumbs,
)

CHECK_SECONDS = 120.0  # the longest one draws 150 texts; a plugin that answers at all needs a few seconds
EXAMPLES = 3
POPULATIONS = "plaudit.populations"
_ASKED = ("Give me a tip for better sleep.", "Write one line about rain.", "Which of these would you take?")


@dataclass(frozen=True, slots=True)
class Checked:
    """A row of the table. `found` and `remedy` are empty if it passed.

    `ran` is False if it waits for another check: what it needs of another member is broken.
    """

    check: str
    passed: bool
    found: str
    remedy: str
    ran: bool = True


def check_installed(name: str) -> list[Checked]:
    """The kit on the installed domain `name`; raises Misconfigured if there is none."""
    points = tuple(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not points:
        raise Misconfigured(
            f"no domain {name!r} is installed; `plaudit plugins list` shows those that are, and `plaudit plugins check "
            "--path DIR` checks one before it is installed"
        )
    asks = next(iter(entry_points(group=POPULATIONS, name=name)), None)
    return _run(_kit(points[0], asks, installed=True))


def check_folder(folder: Path) -> dict[str, list[Checked]]:
    """The kit on each domain that the distribution in `folder` announces, by name; it need not be installed.

    Raises Misconfigured if the folder holds no distribution with a domain.
    """
    groups = _announced(folder)
    domains, populations = groups.get(ENTRY_POINT_GROUP, {}), groups.get(POPULATIONS, {})
    if not domains:
        raise Misconfigured(f"{folder / 'pyproject.toml'} names no entry point of the group {ENTRY_POINT_GROUP}")
    for place in (folder, folder / "src"):
        sys.path.insert(0, str(place.resolve()))
    found = {}
    for name, value in domains.items():
        asks = EntryPoint(name, populations[name], POPULATIONS) if name in populations else None
        point = EntryPoint(name, value, ENTRY_POINT_GROUP)
        found[name] = [*_loads(point), *_run(_kit(point, asks, installed=False))]
    return found


def _announced(folder: Path) -> dict[str, dict[str, str]]:
    """Entry points by group, as the distribution's pyproject.toml announces them."""
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        raise Misconfigured(f"{folder} has no pyproject.toml; give the folder of a distribution") from None
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{folder / 'pyproject.toml'} is not TOML: {error}") from None
    groups: dict[str, dict[str, str]] = project.get("entry-points", {})
    return groups


def _loads(point: EntryPoint) -> Iterator[Checked]:
    """Whether an announced class loads, and declares the announced name."""
    check = "the entry point loads"
    try:
        plugin = made(point)
        declared = facts_of(plugin).name if isinstance(plugin, DomainPlugin) else ""
    # Importing is the first code of the plugin that runs: whatever it raises is what was found.
    except Exception as error:
        remedy = f'make [project.entry-points."{ENTRY_POINT_GROUP}"] name "module:Class", a class without arguments'
        yield Checked(check, False, f"{point.value}: {told(error)}", remedy)
        return
    same = declared == point.name
    found = "" if same else f"{point.value} declares the name {declared!r}, announced is {point.name!r}"
    yield Checked(check, same, found, "" if same else "inherit from DomainPlugin, and let both names be one")


def _run(kit: PluginConformance) -> list[Checked]:
    calls = BoundedCalls("plaudit-check", CHECK_SECONDS, most_left=len(checks()) + 1, retry=0.0)
    # Whatever else is wrong with the examples, the checks say better.
    with contextlib.suppress(Overdue, Exits):
        if refused := calls(lambda: _examples_refused(kit)):
            return [refused]
    rows = []
    for name, remedy in checks().items():
        found, ran = "", True
        try:
            calls(getattr(kit, name))
        except (Overdue, Overrun):
            found, remedy = f"has not ended within {CHECK_SECONDS:.0f} s", "find what loops or waits without end"
        except NeedsMore as error:
            found, remedy, ran = _line(error), "", False
        # Whatever a plugin raises is its failure of this check; the others still run.
        except Exception as error:
            found = _line(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {_line(error)}"
        check = name.removeprefix("test_").replace("_", " ")
        rows.append(Checked(check, not found, found, remedy if found else "", ran))
    return rows


def _examples_refused(kit: PluginConformance) -> Checked | None:
    """A row that stands for all, if the plugin takes none of the requests that were made up for it."""
    try:
        plugin = kit.make_plugin()
        for request in kit.example_requests():
            plugin.render(request)
    except RequestRefused as error:
        found = f"render refuses a made-up request: {type(error).__name__}: {_line(error)}"
        remedy = (
            "run the kit in the plugin's own tests, with requests that it takes, or give it a probe (`gates`) or "
            f"simulated people (entry points {POPULATIONS}): requests like theirs are tried here"
        )
        return Checked("examples are taken", False, found, remedy)
    # Whatever else is wrong, the checks say better.
    except Exception:
        return None
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _kit(point: EntryPoint, asks: EntryPoint | None, *, installed: bool) -> PluginConformance:
    is_installed = installed

    class Made(PluginConformance):
        """The kit on a class that an entry point names."""

        installed = is_installed

        def make_plugin(self) -> DomainPlugin:
            """A plugin."""
            plugin: DomainPlugin = point.load()()
            return plugin

        def example_requests(self) -> Sequence[Request]:
            """What its simulated people ask, else short questions; with options if the domain ranks them.

            If it refuses those, questions of the shape that its gate's probes have.
            """
            if asks is not None:
                people: Any = asks.load()()
                return [prompt.request for prompt in itertools.islice(people.channel_prompts(), EXAMPLES)]
            plugin = self.make_plugin()
            options = _options() if plugin.declaration.action is Action.CHOICE else ()
            plain = [Request(messages=(Message("user", text),), options=options) for text in _ASKED]
            return plain if _taken(plugin, plain) else _like_probes(plugin) or plain

        def example_feedback(self) -> Sequence[Act]:
            """One act of each declared kind."""
            plugin = self.make_plugin()
            prompt = plugin.render(self.example_requests()[0])
            return _acts(plugin.declaration, [option.text for option in prompt.options] or list(examples.OUTPUTS))

    return Made()


def _taken(plugin: DomainPlugin, requests: Sequence[Request]) -> bool:
    try:
        for request in requests:
            plugin.render(request)
    except RequestRefused:
        return False
    return True


def _like_probes(plugin: DomainPlugin) -> list[Request]:
    """The request of the first probe, with made-up texts for what is asked in it last; empty without a probe."""
    for probe in plugin.gates():
        messages = probe.request.messages
        asked = max((at for at, message in enumerate(messages) if message.role == "user"), default=None)
        if asked is not None:
            return [
                dataclasses.replace(
                    probe.request, messages=(*messages[:asked], Message("user", text), *messages[asked + 1 :])
                )
                for text in _ASKED
            ]
    return []


def _options() -> tuple[Option, ...]:
    return tuple(Option(f"option-{place}", text) for place, text in enumerate(examples.OUTPUTS))


def _acts(declared: Declaration, shown: Sequence[str]) -> list[Act]:
    ids = tuple(f"c{place}" for place in range(len(shown)))
    possible: list[Act] = [
        Thumbs(ids[0], up=True),
        Choice(ids[0], ids[1]),
        Ranking(ids),
        # An edit of the first text: plugins may ignore one that has nothing in common with what it corrects.
        Correction(ids[0], f"{shown[0]} Really."),
        Comment(ids[0], "A remark."),
    ]
    if declared.rating_scale is not None:
        possible.append(Rating(ids[0], declared.rating_scale.high))
    possible += [LabelAct(ids[0], value) for value in sorted(declared.labels)[:1]]
    possible += [Signal(ids[0], name, scale.high) for name, scale in declared.signals[:1]]
    return [act for act in possible if KIND_OF_ACT[type(act)] in declared.kinds]
