"""Finds and checks domain plugins, and gives them guarded (`guarded`).

What enters: entry points of the group `plaudit.domains` and the allow-list of the settings. What leaves: a read-only
mapping from domain to plugin. Nothing of a plugin is imported before `load_plugins`; a plugin that is not allowed is
never imported at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from plaudit.domain import CONTRACT_VERSION, ENTRY_POINT_GROUP, Declaration, DomainPlugin
from plaudit.errors import Misconfigured
from plaudit.metrics import Metrics
from plaudit.plugins.bounded import Exits, Overdue, call_once
from plaudit.plugins.guarded import BUDGET_SECONDS, GuardedPlugin

LOAD_SECONDS = 120.0  # a plugin's import may bring a large library with it, on a slow disk


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


def installed() -> list[InstalledPlugin]:
    """All plugins that are installed, allowed or not, by name; imports none of them."""
    return sorted(_announced(point) for point in entry_points(group=ENTRY_POINT_GROUP))


def load_plugins(
    allow: tuple[str, ...] | None, *, budget_seconds: float = BUDGET_SECONDS
) -> MappingProxyType[str, DomainPlugin]:
    """Imports, checks and guards the allowed plugins (None: all that are installed; empty: none).

    budget_seconds: what a call of a member may take. Raises Misconfigured with every problem found, each with the
    distribution's name and version.
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
            plugin, declaration = _checked(point, announced)
            loaded[point.name] = GuardedPlugin(
                plugin, str(announced), declaration=declaration, budget_seconds=budget_seconds
            )
        except Misconfigured as error:
            problems.append(error.message)
    if problems:
        raise Misconfigured("; ".join(problems), setting="plugins")
    return MappingProxyType(loaded)


def guard(
    plugins: Iterable[DomainPlugin], *, budget_seconds: float = BUDGET_SECONDS
) -> MappingProxyType[str, DomainPlugin]:
    """Guards plugins that are already at hand (tests, notebooks), by their declared names."""
    guarded = (GuardedPlugin(each, type(each).__qualname__, budget_seconds=budget_seconds) for each in plugins)
    return MappingProxyType({each.declaration.name: each for each in guarded})


def count_failures(plugins: Mapping[str, DomainPlugin], metrics: Metrics) -> None:
    """Counts what goes wrong in these plugins from now on."""
    for plugin in plugins.values():
        if isinstance(plugin, GuardedPlugin):
            plugin.report = lambda *labels: metrics.plugin_failures.labels(*labels).inc()


def _announced(point: EntryPoint) -> InstalledPlugin:
    distribution = point.dist
    name, version = (distribution.name, distribution.version) if distribution else ("unknown distribution", "?")
    return InstalledPlugin(point.name, name, version, point.value)


def made(point: EntryPoint) -> Any:
    """What an entry point's class gives, made in another thread: importing is the first code of a plugin that runs.

    It may raise anything, Overdue if it takes longer than LOAD_SECONDS, and Exits if it tries to end the process.
    """
    return call_once("plaudit-load", LOAD_SECONDS, lambda: point.load()())


def facts_of(plugin: DomainPlugin) -> Any:
    """What a plugin declares, asked in another thread; may raise what `made` may."""
    return call_once("plaudit-load", LOAD_SECONDS, lambda: plugin.declaration)


def told(error: Exception) -> str:
    """What a plugin raised while it was loaded, in words."""
    match error:
        case Overdue():
            return f"it has not ended within {LOAD_SECONDS:.0f} s"
        case Exits():
            return f"it raised {error}, which ends a process"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _checked(point: EntryPoint, announced: InstalledPlugin) -> tuple[DomainPlugin, Declaration]:
    """The plugin behind an entry point, and its facts; raises Misconfigured if it is not one."""
    try:
        plugin = made(point)
    except Exception as error:
        raise Misconfigured(f"plugin {announced} cannot be loaded: {told(error)}") from error
    if not isinstance(plugin, DomainPlugin):
        raise Misconfigured(f"plugin {announced} is a {type(plugin).__name__}, not a plaudit.domain.DomainPlugin")
    try:
        declaration = facts_of(plugin)
    except Exception as error:
        raise Misconfigured(f"plugin {announced}: declaration failed: {told(error)}") from error
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
    return plugin, declaration
