"""The conformance kit on an installed plugin, with made-up examples: what `plaudit plugins check` runs.

Enters: the name of a domain. Leaves: failures in words. A plugin's own tests know better examples; this asks for
none, so that an operator can check a plugin that somebody else wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from plaudit.domain import ENTRY_POINT_GROUP, Declaration, DomainPlugin
from plaudit.errors import Misconfigured
from plaudit.testing import examples
from plaudit.testing.conformance import PluginConformance
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

_ASKED = ("Give me a tip for better sleep.", "Write one line about rain.", "Which of these would you take?")


def check(name: str) -> list[str]:
    """Failed checks of the installed domain `name`, each as "check: why"; empty where it keeps the contract."""
    points = tuple(entry_points(group=ENTRY_POINT_GROUP, name=name))
    if not points:
        raise Misconfigured(f"no domain {name!r} is installed; `plaudit plugins list` shows those that are")
    kit = _kit(points[0].load())
    failures = []
    for member in sorted(vars(PluginConformance)):
        if member.startswith("test_"):
            # Whatever a plugin raises is its failure of this check; the others still run.
            try:
                getattr(kit, member)()
            except Exception as error:
                why = " ".join(str(error).split()) or type(error).__name__
                failures.append(f"{member.removeprefix('test_').replace('_', ' ')}: {why}")
    return failures


def _kit(plugin: type[DomainPlugin]) -> PluginConformance:
    class Installed(PluginConformance):
        """The kit on an installed class."""

        def make_plugin(self) -> DomainPlugin:
            """A plugin."""
            return plugin()

        def example_requests(self) -> Sequence[Request]:
            """Short questions; with options where the domain ranks them."""
            options = _options() if plugin().declaration.action is Action.CHOICE else ()
            return [Request(messages=(Message("user", text),), options=options) for text in _ASKED]

        def example_feedback(self) -> Sequence[Act]:
            """One act of each declared kind."""
            return _acts(plugin().declaration)

    return Installed()


def _options() -> tuple[Option, ...]:
    return tuple(Option(f"option-{place}", text) for place, text in enumerate(examples.OUTPUTS))


def _acts(declared: Declaration) -> list[Act]:
    ids = tuple(f"c{place}" for place in range(len(examples.OUTPUTS)))
    possible: list[Act] = [
        Thumbs(ids[0], up=True),
        Choice(ids[0], ids[1]),
        Ranking(ids),
        # An edit of the first output: plugins may ignore a text that has nothing in common with what it corrects.
        Correction(ids[0], examples.OUTPUTS[0].replace("Warm the pot first", "First warm the pot")),
        Comment(ids[0], "A remark."),
    ]
    if declared.rating_scale is not None:
        possible.append(Rating(ids[0], declared.rating_scale.high))
    possible += [LabelAct(ids[0], value) for value in sorted(declared.labels)[:1]]
    possible += [Signal(ids[0], name, scale.high) for name, scale in declared.signals[:1]]
    return [act for act in possible if KIND_OF_ACT[type(act)] in declared.kinds]
