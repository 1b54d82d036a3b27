"""How a request of a simulated person is sent, by what its domain makes: completions by Generate, orders by Choose.

A question enters, what people then see leaves. The only place of the simulator that asks for the kind of action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from plaudit.client import Plaudit
from plaudit.client.requests import ChooseOptions, GenerateOptions
from plaudit.domain import DomainPlugin
from plaudit.errors import Misconfigured
from plaudit.plugins import load_plugins
from plaudit.simulate.population import Shown
from plaudit.types import Action, Channel, Option, Purpose, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request. `versions` names releases (one for all or one a completion); empty leaves them to the service.

    What a completion is (`n`, `max_tokens`, `seed`, `temperature`) says nothing about choices.
    """

    interaction_id: str
    channel: Channel
    request: Request
    n: int = 1
    max_tokens: int = 64
    seed: int = 0
    purpose: Purpose = Purpose.SERVE
    versions: tuple[int, ...] = ()
    temperature: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredCandidate:
    """One completion or option as it came. `seed` is a completion's own; `probability`: of an option, to be first."""

    shown: Shown
    release_version: int
    release_digest: str
    seed: int = 0
    token_ids: tuple[int, ...] = ()
    probability: float = 1.0
    logprob: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back, in the order shown.

    `decision`: candidate id of the option decided; empty for completions. `slate`: how many of the candidates people
    see, from the first; 0 for all.
    """

    interaction_id: str
    handle: str
    candidates: tuple[AnsweredCandidate, ...]
    decision: str = ""
    slate: int = 0

    @property
    def shown(self) -> tuple[Shown, ...]:
        """What people see, in order."""
        return tuple(candidate.shown for candidate in self.candidates[: self.slate or None])

    @property
    def decided(self) -> Shown:
        """The option that was decided; the first candidate if none was."""
        everything = [candidate.shown for candidate in self.candidates]
        return next((one for one in everything if one.candidate_id == self.decision), everything[0])


Ask = Callable[[Plaudit, Question], Answer]
Kind = TypeVar("Kind")


def plugin_of(domain: str) -> DomainPlugin:
    """The plugin of a domain, which also says what its requests become; raises Misconfigured if none is installed."""
    plugin = load_plugins((domain,)).get(domain)
    if plugin is None:
        raise Misconfigured(f"no plugin of the domain {domain!r} is installed; install it", domain=domain)
    return plugin


def by_action(plugin: DomainPlugin, *, completion: Kind, choice: Kind) -> Kind:
    """What is for the kind of action of this domain, out of what is for each kind."""
    of: Mapping[Action, Kind] = MappingProxyType({Action.COMPLETION: completion, Action.CHOICE: choice})
    return of[plugin.declaration.action]


def ask_of(plugin: DomainPlugin) -> Ask:
    """How requests of this domain are asked."""
    return by_action(plugin, completion=_generate, choice=_chooser(plugin))


def offered(plugin: DomainPlugin, request: Request) -> tuple[Option, ...]:
    """The options of a request as the plugin renders them, in the request's order, each with what people see of it."""
    prompt = plugin.render(request)
    return tuple(Option(each.option_id, plugin.parse(prompt, each.text).displayed) for each in prompt.options)


def _generate(client: Plaudit, question: Question) -> Answer:
    options: GenerateOptions = {
        "n": question.n,
        "max_tokens": question.max_tokens,
        "seed": question.seed,
        "release_versions": question.versions,
        "interaction_id": question.interaction_id,
        "tenant": question.channel.tenant,
        "passages": question.request.passages,
        "purpose": question.purpose,
        "token_ids": True,  # replies are made again from them
    }
    if question.temperature is not None:
        options["temperature"] = question.temperature
    reply = client.generate(question.channel.domain, question.request.messages, **options)
    return Answer(
        interaction_id=reply.interaction_id,
        handle=reply.handle,
        candidates=tuple(
            AnsweredCandidate(
                shown=Shown(completion.candidate_id, completion.text, place),
                release_version=completion.release_version,
                release_digest=completion.release_digest,
                seed=question.seed + place,
                token_ids=completion.token_ids,
                logprob=completion.logprob_raw,
            )
            for place, completion in enumerate(reply.completions)
        ),
    )


def _chooser(plugin: DomainPlugin) -> Ask:
    """Asks Choose. The reply names options by id, so what they say comes from the request as the plugin renders it.

    Of a verdict people see all options; of a slate as many as the domain has places for.
    """
    places = len(plugin.declaration.place_weights)

    def choose(client: Plaudit, question: Question) -> Answer:
        texts = {option.option_id: option.text for option in offered(plugin, question.request)}
        options: ChooseOptions = {
            "interaction_id": question.interaction_id,
            "tenant": question.channel.tenant,
            "passages": question.request.passages,
            "purpose": question.purpose,
        }
        if question.versions:
            options["release_version"] = question.versions[0]
        reply = client.choose(question.channel.domain, question.request.messages, question.request.options, **options)
        candidates = tuple(
            AnsweredCandidate(
                shown=Shown(option.candidate_id, texts[option.option_id], place, option.option_id),
                release_version=reply.release_version,
                release_digest=reply.release_digest,
                probability=option.probability,
                logprob=option.logprob,
            )
            for place, option in enumerate(reply.ranking)
        )
        return Answer(
            interaction_id=reply.interaction_id,
            handle=reply.handle,
            candidates=candidates,
            decision=reply.decided.candidate_id,
            slate=places if places > 1 else 0,
        )

    return choose
