"""The simulator: people who ask and rate, as a caller of the service like any other.

Settings enter, requests and acts go to the service, a ledger leaves. Knows the hidden gold; runs in a process of its
own and tells the service nothing but what a person would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from plaudit import ids
from plaudit.errors import Misconfigured, ReleaseNotServable, UnknownRelease
from plaudit.simulate.asking import Answer, Question, ask_of, plugin_of
from plaudit.simulate.connection import Connection, Refused
from plaudit.simulate.ledger import AcknowledgedAct, CandidateRecord, Failure, ReplyRecord, SimulationLedger
from plaudit.simulate.plan import Visit, visits
from plaudit.simulate.population import Population, Rater, Shown, SimAct, load_population
from plaudit.types import KIND_OF_ACT, Channel, FeedbackKind, Purpose

LIVE_VERSION_SECONDS = 1.0  # A swap takes longer than this to be worth comparing with the base.


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateSettings:
    """What is simulated. `events` None asks and rates until `stop` is set; `rate` False asks only.

    `seed` fixes the people; `seed` and `round` together fix what they ask and the noise of what they answer. The same
    people who come back in a new round ask anew and judge anew. `explore_share` of the requests have purpose EXPLORE
    instead of `purpose`; None is the population's own share.
    """

    target: str
    population: str = "instruction"
    tenant: str = "default"
    seed: int = 0
    round: int = 0
    events: int | None = 1780
    acts_per_interaction: float = 3.3
    concurrency: int = 32
    purpose: Purpose = Purpose.SERVE
    explore_share: float | None = None
    base_share: float = 0.0
    rate: bool = True
    temperature: float | None = None
    pause_seconds: float = 0.0
    deadline_seconds: float = 120.0
    patience_seconds: float = 180.0


Progress = Callable[[SimulationLedger], None]


def simulate(
    settings: SimulateSettings,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    ledger: SimulationLedger | None = None,
) -> SimulationLedger:
    """Asks and rates with `concurrency` threads; `progress` is called after each interaction, by one thread at a time.

    Ends when the planned acts are done or `stop` is set; interactions under way are finished. A `ledger` from outside
    is written to, and can be read meanwhile.
    """
    if settings.concurrency < 1:
        raise Misconfigured(f"concurrency is {settings.concurrency}; it must be 1 or more", field="concurrency")
    if settings.events is not None and not settings.acts_per_interaction > 0:
        raise Misconfigured(
            f"{settings.events} pieces of feedback are never given at {settings.acts_per_interaction:g} per answer; "
            "give events 0 (--events 0) to ask without rating until SIGTERM",
            field="acts_per_interaction",
        )
    simulation = _Simulation(settings, ledger or SimulationLedger(), progress, stop or threading.Event())
    return simulation.run()


class _Simulation:
    """One run: threads take visits from one iterator."""

    def __init__(
        self,
        settings: SimulateSettings,
        ledger: SimulationLedger,
        progress: Progress | None,
        stop: threading.Event,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.population: Population = load_population(settings.population)
        self.channel = Channel(self.population.domain, settings.tenant)
        self._progress = progress
        self._progress_lock = threading.Lock()
        self._stop = stop
        self._visits_lock = threading.Lock()
        # Every draw of this round depends on both numbers.
        self._draws = f"{settings.seed}:{settings.round}"
        prompts, raters = self.population.channel_prompts(), self.population.raters(settings.seed)
        for what, found in (
            ("channel prompts", prompts),
            ("raters", raters),
            ("kinds in its mix", self.population.mix),
        ):
            if not found:
                raise Misconfigured(f"the population {settings.population!r} has no {what}; nobody could rate anything")
        self._visits = visits(
            prompts,
            raters,
            self.population.mix,
            seed=self._draws,
            events=settings.events,
            acts_per_interaction=settings.acts_per_interaction,
            base_share=settings.base_share,
        )
        self._connection = Connection(
            settings.target,
            ask_of(plugin_of(self.population.domain)),
            deadline_seconds=settings.deadline_seconds,
            patience_seconds=settings.patience_seconds,
            stop=self._stop,
        )
        self._live: tuple[float, int | None] = (float("-inf"), None)

    def run(self) -> SimulationLedger:
        """The ledger when every thread has ended; an error in a thread ends all and is raised."""
        try:
            with ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="simulate") as pool:
                threads = [pool.submit(self._work) for _ in range(self.settings.concurrency)]
                # In slices: a main thread that sleeps for good may miss a signal (plaudit.signals).
                while wait(threads, timeout=0.25).not_done:
                    continue
                for thread in threads:
                    thread.result()
        finally:
            self._connection.close()
        return self.ledger

    def _work(self) -> None:
        try:
            for visit in self._taken():
                self._visit(visit)
                if self._progress is not None:
                    with self._progress_lock:
                        self._progress(self.ledger)
                if self.settings.pause_seconds:
                    self._stop.wait(self.settings.pause_seconds)
        except BaseException:
            self._stop.set()
            raise

    def _taken(self) -> Iterator[Visit]:
        while not self._stop.is_set():
            with self._visits_lock:
                visit = next(self._visits, None)
            if visit is None:
                return
            yield visit

    def _visit(self, visit: Visit) -> None:
        answer = self._ask(visit)
        if answer is None or not self.settings.rate:
            return
        for number, (rater, kind) in enumerate(visit.acts):
            rng = random.Random(f"act:{self._draws}:{visit.index}:{number}")
            act = self._act(rater, visit, answer.shown, kind, rng)
            if act is not None:
                self._submit(answer, rater, act)

    def _act(
        self, rater: Rater, visit: Visit, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """An act of `kind`, or else of the commonest other kind of which the rater has something to say."""
        mix = self.population.mix
        for each in (kind, *sorted((other for other in mix if other is not kind), key=lambda other: -mix[other])):
            act = self.population.act(rater, visit.prompt, shown, each, rng)
            if act is not None:
                return act
        return None

    def _ask(self, visit: Visit) -> Answer | None:
        settings = self.settings
        question = Question(
            interaction_id=ids.new_id(),
            channel=self.channel,
            request=visit.prompt.request,
            n=visit.n,
            max_tokens=self.population.max_tokens,
            # Below 2^31 and a multiple of 8: the completions of one request take seed, seed + 1, ...
            seed=random.Random(f"request:{self._draws}:{visit.index}").randrange(2**28) * 8,
            purpose=self._purpose(visit),
            versions=self._versions(visit),
            temperature=settings.temperature,
        )
        self.ledger.asked()
        started = _now()
        try:
            answer, attempts = self._ask_even_if_retired(question)
        except Refused as error:
            self.ledger.failed(
                Failure(what="request", at=_now(), reason=error.reason, message=str(error), attempts=error.attempts)
            )
            return None
        self.ledger.replied(record_of(question, answer, started, _now(), attempts))
        return answer

    def _ask_even_if_retired(self, question: Question) -> tuple[Answer, int]:
        """Asks; if a release that was named stopped being served meanwhile, asks without naming any."""
        try:
            return self._connection.ask(question)
        except Refused as error:
            if not question.versions or not isinstance(error.error, ReleaseNotServable | UnknownRelease):
                raise
        return self._connection.ask(dataclasses.replace(question, interaction_id=ids.new_id(), versions=()))

    def _purpose(self, visit: Visit) -> Purpose:
        """EXPLORE for a share of the requests that is drawn by lot, apart from all other draws."""
        share = self.settings.explore_share
        if share is None:
            share = self.population.explore_share
        explore = random.Random(f"explore:{self._draws}:{visit.index}").random() < share
        return Purpose.EXPLORE if explore else self.settings.purpose

    def _versions(self, visit: Visit) -> tuple[int, ...]:
        """One completion from the base among those of the live release, at a place drawn by lot; or nothing."""
        live = self._live_version() if visit.with_base else None
        if not live:
            return ()
        place = random.Random(f"base:{self._draws}:{visit.index}").randrange(visit.n)
        return tuple(0 if index == place else live for index in range(visit.n))

    def _live_version(self) -> int | None:
        asked_at, live = self._live
        if time.monotonic() - asked_at > LIVE_VERSION_SECONDS:
            # A service that cannot say it is asked without naming a release; what becomes of that is in the ledger.
            with contextlib.suppress(Refused):
                live = self._connection.live_version(self.channel)
            self._live = (time.monotonic(), live)
        return live

    def _submit(self, answer: Answer, rater: Rater, act: SimAct) -> None:
        feedback_id, sent = ids.new_id(), _now()
        self.ledger.sent()
        try:
            attempts = self._connection.submit(feedback_id=feedback_id, handle=answer.handle, rater=rater.name, act=act)
        except Refused as error:
            self.ledger.failed(
                Failure(what="act", at=_now(), reason=error.reason, message=str(error), attempts=error.attempts)
            )
            return
        self.ledger.acknowledged_act(
            AcknowledgedAct(
                feedback_id=feedback_id,
                interaction_id=answer.interaction_id,
                rater=rater.name,
                kind=KIND_OF_ACT[type(act.act)],
                sent_at=sent,
                acknowledged_at=_now(),
            ),
            attempts,
        )


def record_of(
    question: Question,
    answer: Answer,
    started: dt.datetime,
    ended: dt.datetime,
    attempts: int,
) -> ReplyRecord:
    """The reply with what is needed to make it again."""
    return ReplyRecord(
        interaction_id=answer.interaction_id,
        messages=question.request.messages,
        max_tokens=question.max_tokens,
        temperature=question.temperature,
        started_at=started,
        ended_at=ended,
        attempts=attempts,
        purpose=question.purpose,
        decision=answer.decision,
        candidates=tuple(
            CandidateRecord(
                candidate_id=candidate.shown.candidate_id,
                release_version=candidate.release_version,
                release_digest=candidate.release_digest,
                seed=candidate.seed,
                token_ids=candidate.token_ids,
                text=candidate.shown.text,
                option_id=candidate.shown.option_id,
                probability=candidate.probability,
            )
            for candidate in answer.candidates
        ),
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)
