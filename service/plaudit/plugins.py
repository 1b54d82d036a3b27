"""Finds, checks and guards domain plugins.

What enters: entry points of the group `plaudit.domains` and the allow-list of the settings. What leaves: a read-only
mapping from domain to plugin, in which every member is guarded: what a plugin raises becomes `PluginFailed`, once.
Nothing of a plugin is imported before `load_plugins`; a plugin that is not allowed is never imported at all.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from plaudit.domain import (
    CONTRACT_VERSION,
    ENTRY_POINT_GROUP,
    Declaration,
    DecodeSpec,
    DomainPlugin,
    GateProbe,
    Mode,
)
from plaudit.errors import Misconfigured, PluginFailed, RecordUnusable, RequestRefused
from plaudit.types import MOST_REWARD, Evidence, Feedback, Interaction, Outcome, Prompt, Request, RewardTerms

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class InstalledPlugin:
    """A plugin as its distribution announces it, before anything of it is imported."""

    name: str
    distribution: str
    version: str
    value: str

    def __str__(self) -> str:
        """Return the form that errors use."""
        return f"{self.name} ({self.value}, from {self.distribution} {self.version})"


class GuardedPlugin(DomainPlugin):
    """A plugin whose exceptions become `PluginFailed(domain, member)`; refusals of a request pass as they are."""

    def __init__(self, inner: DomainPlugin, source: str) -> None:
        self.inner = inner
        self.source = source
        self._declaration = inner.declaration

    @property
    def declaration(self) -> Declaration:
        """The plugin's frozen facts, read once."""
        return self._declaration

    def render(self, request: Request) -> Prompt:
        """See DomainPlugin."""
        return self._guarded("render", lambda: self.inner.render(request))

    def parse(self, prompt: Prompt, output: str) -> Outcome:
        """See DomainPlugin."""
        return self._guarded("parse", lambda: self.inner.parse(prompt, output))

    def to_evidence(self, interaction: Interaction, feedback: Feedback) -> Sequence[Evidence]:
        """See DomainPlugin."""
        return self._guarded("to_evidence", lambda: tuple(self.inner.to_evidence(interaction, feedback)))

    def decode_spec(self, prompt: Prompt, mode: Mode) -> DecodeSpec:
        """See DomainPlugin."""
        return self._guarded("decode_spec", lambda: self.inner.decode_spec(prompt, mode))

    def reward(self, prompt: Prompt, outcome: Outcome, score: float) -> RewardTerms:
        """See DomainPlugin."""
        return self._guarded("reward", lambda: _bounded(self.inner.reward(prompt, outcome, score)))

    def gates(self) -> Sequence[GateProbe]:
        """See DomainPlugin."""
        return self._guarded("gates", lambda: tuple(self.inner.gates()))

    def slices(self, interaction: Interaction) -> Sequence[str]:
        """See DomainPlugin."""
        return self._guarded("slices", lambda: tuple(self.inner.slices(interaction)))

    def _guarded(self, member: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except (RequestRefused, RecordUnusable, PluginFailed):
            raise
        except Exception as error:
            domain = self._declaration.name
            raise PluginFailed(
                f"plugin {self.source}: {member} raised {_told(error)}; mend or disallow the plugin",
                domain=domain,
                member=member,
            ) from error


class _Nonsense(ValueError):
    """What a plugin returned cannot be used; the message quotes numbers alone."""


def _told(error: Exception) -> str:
    """An exception of a plugin without its message, which may quote what people wrote: its type and its place."""
    if isinstance(error, _Nonsense):
        return f"ValueError: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def _bounded(terms: RewardTerms) -> RewardTerms:
    """The terms, whose total training can use; raises _Nonsense for any other."""
    # Written so that NaN fails too.
    if not abs(terms.total) <= MOST_REWARD:
        raise _Nonsense(f"a total of {terms.total}, but rewards lie within {-MOST_REWARD:g} to {MOST_REWARD:g}")
    return terms


def installed() -> list[InstalledPlugin]:
    """All plugins that are installed, allowed or not, by name; imports none of them."""
    return sorted(_announced(point) for point in entry_points(group=ENTRY_POINT_GROUP))


def load_plugins(allow: tuple[str, ...] | None) -> MappingProxyType[str, DomainPlugin]:
    """Imports and checks the allowed plugins (None: all that are installed; empty: none).

    Raises Misconfigured with every problem found, each with the distribution's name and version.
    """
    points = list(entry_points(group=ENTRY_POINT_GROUP))
    problems: list[str] = []
    if allow is not None:
        names = {point.name for point in points}
        problems += [
            f"plugins.allow names {name!r}, which is not installed (installed: {', '.join(sorted(names)) or 'none'})"
            for name in allow
            if name not in names
        ]
        points = [point for point in points if point.name in allow]
    loaded: dict[str, DomainPlugin] = {}
    sources: dict[str, InstalledPlugin] = {}
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        announced = _announced(point)
        if point.name in sources:
            problems.append(f"domain {point.name!r} comes twice: {sources[point.name]} and {announced}; uninstall one")
            continue
        sources[point.name] = announced
        try:
            loaded[point.name] = GuardedPlugin(_checked(point, announced), str(announced))
        except Misconfigured as error:
            problems.append(error.message)
    if problems:
        raise Misconfigured("; ".join(problems), setting="plugins")
    return MappingProxyType(loaded)


def guard(plugins: Iterable[DomainPlugin]) -> Mapping[str, DomainPlugin]:
    """Guards plugins that are already at hand (tests, notebooks), by their declared names."""
    return MappingProxyType({p.declaration.name: GuardedPlugin(p, type(p).__qualname__) for p in plugins})


def _announced(point: EntryPoint) -> InstalledPlugin:
    distribution = point.dist
    name, version = (distribution.name, distribution.version) if distribution else ("unknown distribution", "?")
    return InstalledPlugin(point.name, name, version, point.value)


def _checked(point: EntryPoint, announced: InstalledPlugin) -> DomainPlugin:
    """The plugin behind an entry point; raises Misconfigured where it is not one."""
    # Importing is the first code of the plugin that runs: whatever it raises is the plugin's, not ours.
    try:
        target = point.load()
        plugin = target()
    except Exception as error:
        raise Misconfigured(f"plugin {announced} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(plugin, DomainPlugin):
        raise Misconfigured(f"plugin {announced} is a {type(plugin).__name__}, not a plaudit.domain.DomainPlugin")
    try:
        declaration = plugin.declaration
    except Exception as error:
        raise Misconfigured(f"plugin {announced}: declaration raised {type(error).__name__}: {error}") from error
    if not isinstance(declaration, Declaration):
        raise Misconfigured(f"plugin {announced}: declaration is a {type(declaration).__name__}, not a Declaration")
    if declaration.contract_version != CONTRACT_VERSION:
        raise Misconfigured(
            f"plugin {announced} is written for contract version {declaration.contract_version}; this service speaks "
            f"{CONTRACT_VERSION}: install a matching version of the plugin"
        )
    if faults := declaration.faults():
        raise Misconfigured(f"plugin {announced} declares what no domain can: {'; '.join(faults)}")
    if declaration.name != point.name:
        raise Misconfigured(
            f"plugin {announced} declares the name {declaration.name!r}; entry point and declaration must agree"
        )
    return plugin
