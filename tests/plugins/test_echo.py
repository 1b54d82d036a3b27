"""The echo domains keep the contract: the least that a plugin of completions and one of choices can be."""

from plaudit.testing.conformance import PluginConformance
from plaudit.types import Choice, LabelAct, Message, Option, Ranking, Rating, Request, Signal, Thumbs
from plaudit_echo.plugin import Echo, EchoChoice

TEXTS = ("Name a tree.", "How do I make tea?", "お茶は？")


class TestEcho(PluginConformance):
    def make_plugin(self):
        return Echo()

    def example_requests(self):
        return [Request(messages=(Message("user", text),)) for text in TEXTS]

    def example_feedback(self):
        return [Thumbs("c0", up=True), Choice("c1", "c0"), Ranking(("c3", "c1", "c0", "c2")), Rating("c0", 0.5)]


class TestEchoChoice(PluginConformance):
    def make_plugin(self):
        return EchoChoice()

    def example_requests(self):
        options = (Option("allow", "yes"), Option("deny", "no"))
        return [Request(messages=(Message("user", text),), options=options) for text in TEXTS]

    def example_feedback(self):
        return [LabelAct("c0", "yes"), Choice("c1", "c0"), Signal("c0", "like", 1.0)]

    def example_outputs(self):
        return ("yes", "no", "maybe", "")
