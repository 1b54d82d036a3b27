"""All servers: which are there, which adapter each holds, and which of them takes a request.

In: adapters to hold, requests by the name of an adapter ("" is the base). Out: a server that answers under that name
and was seen to answer rightly. Never lets a request name an adapter on a server before it is loaded there and, once it
was proved anywhere, has given the same log-probs there. All methods belong to one event loop.

A server that comes (at the start, back after an outage, restarted) is let in in steps: 1 it says what it runs; 2 it is
asked for log-probs to see that its base and its settings are right; 3 it loads every adapter that the fleet holds and
is asked again what they were proved with; 4 it takes requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from plaudit.engine.protocol import EncodedPrompt
from plaudit.engine.vllm import checks, witness
from plaudit.engine.vllm.local import Signature
from plaudit.engine.vllm.server import AdapterLost, Server, ServerAway, Unanswered
from plaudit.engine.vllm.shelf import Named
from plaudit.engine.vllm.witness import Witness
from plaudit.errors import EngineUnavailable, Misconfigured, PlauditError
from plaudit.settings import Settings

BASE = ""
WATCH_SECONDS = 2.0
# What is kept of the proof of one name: a release's probes, as many as show that it is the same.
WITNESSES = 4
_REFUSED_SECONDS = 30.0

Tell = Callable[[str, bool, int, int | None], None]

log = structlog.get_logger("plaudit.engine")


@dataclass(slots=True, eq=False)
class Place:
    """A server, and what is known of it.

    `here`: names that it was seen to answer rightly; `refused`: what it could not load or prove, and when to try again.
    `max_loras`: its places for adapters, None if it does not say.
    """

    server: Server
    up: bool = False
    base: str = ""
    here: set[str] = field(default_factory=set)
    refused: dict[str, tuple[PlauditError, float]] = field(default_factory=dict)
    open: int = 0
    told: str = ""
    max_loras: int | None = None
    told_unknown: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def model(self, name: str) -> str:
        """What a request calls an adapter at this server, or the base."""
        return name or self.base


class Fleet:
    """Servers that run one base. `slots`: adapters that may be held at once; `exact`: they compute in float32."""

    def __init__(
        self, servers: Sequence[Server], *, context_length: int, slots: int, exact: bool, signature: Signature | None
    ) -> None:
        self._places = [Place(server) for server in servers]
        self._context_length = context_length
        self._slots = slots
        self._exact = exact
        self._signature = signature
        self._held: dict[str, Named] = {}
        self._witnesses: dict[str, list[Witness]] = {}
        self._tell: Tell = lambda address, up, adapters, max_loras: None

    @classmethod
    def of(
        cls, settings: Settings, signature: Signature | None, context_length: int, addresses: Sequence[str] = ()
    ) -> Fleet:
        """The servers that settings name, or those of `addresses`."""
        wanted = settings.engine.vllm
        key = wanted.api_key.get_secret_value()
        return cls(
            [
                Server(address, api_key=key, silence_seconds=wanted.silence_seconds)
                for address in addresses or wanted.servers
            ],
            context_length=context_length,
            slots=settings.engine.adapter_slots,
            exact=wanted.dtype == "float32",
            signature=signature,
        )

    # Servers -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Lets in every server that answers; raises EngineUnavailable if none does, Misconfigured if one is wrong."""
        found = await asyncio.gather(*(self._let_in(place) for place in self._places), return_exceptions=True)
        for place, error in zip(self._places, found, strict=True):
            if isinstance(error, Unanswered):
                self._set_aside(place, error)
        wrong = [each for each in found if isinstance(each, BaseException) and not isinstance(each, Unanswered)]
        if wrong:
            raise wrong[0]
        if not any(place.up for place in self._places):
            raise self._none_answers()

    async def watch(self) -> None:
        """Asks every server every two seconds what it runs, for ever: lets in, and sets aside."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await asyncio.gather(*(self._look(place) for place in self._places))

    def counts(self) -> tuple[int, int]:
        """Servers that take requests, and servers in all."""
        return sum(place.up for place in self._places), len(self._places)

    async def observe(self, tell: Tell) -> None:
        """Tells of every server, now and from now on; see `Observer.server`."""
        self._tell = tell
        for place in self._places:
            self._told(place)

    def _told(self, place: Place) -> None:
        proved = sum(bool(self._witnesses.get(name)) for name in place.here) if place.up else 0
        self._tell(place.server.address, place.up, proved, place.max_loras)

    async def close(self) -> None:
        """Closes the connections. Adapters stay loaded: other processes may share the servers."""
        for place in self._places:
            await place.server.close()

    async def _look(self, place: Place) -> None:
        try:
            if not place.up:
                await self._let_in(place)
            else:
                async with place.lock:  # what is loaded meanwhile is not in the answer, and would count as lost
                    served = await place.server.served()
                    place.here &= served.adapters | {BASE}
                await self._load_all(place)
        except Exception as error:  # the outermost loop: one server's trouble is its own
            self._set_aside(place, error)
        self._told(place)

    async def _let_in(self, place: Place) -> None:
        async with place.lock:
            served = await place.server.served()
            place.base, place.here = served.base, {BASE}
            checks.context(place.server, served, self._context_length)
            if self._signature is not None:
                await checks.base(place.server, place.base, self._signature, exact=self._exact)
            await checks.mode(place.server, place.base, self._signature)
            await self._check_places(place)
        await self._load_all(place)
        place.up, place.told = True, ""
        log.info("vllm server takes requests", server=place.server.address, base=place.base)

    def _set_aside(self, place: Place, error: Exception) -> None:
        was, place.up = place.up, False
        words = error.message if isinstance(error, PlauditError | Unanswered) else type(error).__name__
        if was or place.told != words:
            place.told = words
            log.warning("vllm server takes no requests", server=place.server.address, why=words)
        self._told(place)

    async def _check_places(self, place: Place) -> None:
        place.max_loras = await checks.places(place.server, place.base, self._slots)
        if place.max_loras is None and not place.told_unknown:
            place.told_unknown = True
            log.warning(
                "vllm server does not say how many places for adapters it has; see --max-loras in docs/vllm.md",
                server=place.server.address,
                wanted=f"more than {self._slots}",
            )

    # Adapters ------------------------------------------------------------------------------------

    async def hold(self, named: Named) -> None:
        """Loads an adapter into every server that is up, and from now on into any that comes.

        Raises BadArtifact, ProofFailed, or EngineUnavailable if no server took it; then none holds it.
        """
        self._held[named.name] = named
        self._witnesses.setdefault(named.name, [])
        try:
            up = [place for place in self._places if place.up]
            found = await asyncio.gather(*(self._make_ready(place, named.name) for place in up), return_exceptions=True)
            for place, error in zip(up, found, strict=True):
                if isinstance(error, Unanswered):
                    self._set_aside(place, error)
                elif isinstance(error, BaseException):
                    raise error
            if not any(named.name in place.here for place in up if place.up):
                raise self._none_answers()
        except BaseException:
            await self.let_go(named.name)
            raise

    async def let_go(self, name: str) -> None:
        """Forgets an adapter and unloads it. Its caller knows that no request names it."""
        self._held.pop(name, None)
        self._witnesses.pop(name, None)
        for place in self._places:
            async with place.lock:  # it may be loading just now
                place.refused.pop(name, None)
                if name in place.here:
                    place.here.discard(name)
                    # One that is away, or broken, has lost it or will be asked what it holds when it comes back.
                    with contextlib.suppress(PlauditError, Unanswered):
                        await place.server.unload(name)

    async def _load_all(self, place: Place) -> None:
        """Makes a server ready for every adapter; one that it cannot load or prove is that adapter's trouble alone."""
        for name in list(self._held):
            with contextlib.suppress(PlauditError):
                await self._make_ready(place, name)

    async def _make_ready(self, place: Place, name: str) -> None:
        """Loads an adapter into a server and asks what it was proved with; at once if that was done, or just failed."""
        async with place.lock:
            named = self._held.get(name)
            if named is None or name in place.here:
                return
            error, retry_at = place.refused.get(name, (None, 0.0))
            if error is not None and time.monotonic() < retry_at:
                raise error
            try:
                await self._require_places(place)
                await place.server.load(name, named.path)
                await self._prove(place, name)
            except PlauditError as found:
                place.refused[name] = (found, time.monotonic() + _REFUSED_SECONDS)
                log.error("vllm server cannot serve an adapter", server=place.server.address, why=found.message)
                raise
            place.refused.pop(name, None)
            # Counted even if it was let go meanwhile: whoever did that waits for the lock, to unload it.
            place.here.add(name)

    async def _require_places(self, place: Place) -> None:
        """Asked before each load, because a server may have been restarted since it was let in."""
        try:
            await self._check_places(place)
        except Misconfigured as error:  # the server's trouble, not the adapter's
            raise ServerAway(error.message, place.server.address) from error

    async def _prove(self, place: Place, name: str) -> None:
        for each in self._witnesses.get(name, []):
            now = await self._scores(place, name, each.prompt, [each.completion], each.temperature)
            base = await self._scores(place, BASE, each.prompt, [each.completion], each.temperature)
            what = f"{name} on the vLLM server at {place.server.address}"
            witness.check(what, each.logprobs, now[0], base[0], exact=self._exact)

    # Requests ------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serving(self, name: str) -> AsyncIterator[Place]:
        """A server that answers under a name, the one with the fewest open requests; raises EngineUnavailable.

        What the block raises is learnt from: a server that is away is set aside, a lost adapter is loaded again.
        """
        place = await self._choose(name)
        place.open += 1
        try:
            yield place
        except ServerAway as error:
            self._set_aside(place, error)
            raise
        except AdapterLost:
            place.here.discard(name)
            if name == BASE:
                place.up = False  # its base has another name now: it is let in anew
            raise
        finally:
            place.open -= 1

    async def _choose(self, name: str) -> Place:
        up = sorted((place for place in self._places if place.up), key=lambda place: place.open)
        for place in up:
            if name in place.here:
                return place
        refused: PlauditError | None = None
        for place in up:  # restarted ones
            try:
                await self._make_ready(place, name)
            except Unanswered as error:
                self._set_aside(place, error)
            except PlauditError as error:
                refused = error
            else:
                if name in place.here:
                    return place
        raise refused or self._none_answers()

    async def score(
        self, name: str, prompt: EncodedPrompt, completions: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[float, ...]]:
        """Log-probs of completions' tokens by every server that is up, which must agree; the first one's.

        The first answers about a name are kept: they are what proves it on servers that come later. Raises ProofFailed
        or EngineUnavailable.
        """
        await self._choose(name)
        places = [place for place in self._places if place.up and name in place.here]
        answers = await asyncio.gather(
            *(self._scores(place, name, prompt, completions, temperature) for place in places), return_exceptions=True
        )
        found: list[tuple[Place, list[tuple[float, ...]]]] = []
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, ServerAway):
                self._set_aside(place, answer)
            elif isinstance(answer, AdapterLost):
                place.here.discard(name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append((place, answer))
        if not found:
            raise self._none_answers()
        first = found[0][1]
        for place, other in found[1:]:
            for mine, theirs in zip(first, other, strict=True):
                what = f"{name or 'the base'} on the vLLM server at {place.server.address}"
                witness.check(what, mine, theirs, None, exact=self._exact)
        if (kept := self._witnesses.get(name)) is not None:
            for completion, logprobs in zip(completions, first, strict=True):
                if len(kept) < WITNESSES:
                    kept.append(Witness(prompt, tuple(completion), temperature, logprobs))
        return first

    async def score_at_one(
        self, name: str, prompt: EncodedPrompt, completions: Sequence[Sequence[int]], temperature: float
    ) -> list[tuple[float, ...]]:
        """Log-probs of completions' tokens, by one server."""
        async with self.serving(name) as place:
            return await self._scores(place, name, prompt, completions, temperature)

    async def _scores(
        self,
        place: Place,
        name: str,
        prompt: EncodedPrompt,
        completions: Sequence[Sequence[int]],
        temperature: float,
    ) -> list[tuple[float, ...]]:
        return await checks.scores(place.server, place.model(name), prompt, completions, temperature)

    def _none_answers(self) -> EngineUnavailable:
        addresses = ", ".join(place.server.address for place in self._places)
        why = "; ".join(place.told for place in self._places if place.told) or addresses
        return EngineUnavailable(f"no vLLM server takes requests: {why}; retry", servers=addresses)
