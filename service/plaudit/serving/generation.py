"""From a checked request to a recorded interaction.

What enters: a checked request, the plugin of its domain, the engine, the router. What leaves: an Interaction in the
log, and with it a signed handle (`recording`). Never knows gRPC.

A completion, in steps: 1 the plugin renders the prompt (and if the request was answered before, that answer comes
back); 2 the engine encodes it; 3 the router pins a release to each candidate; 4 the engine generates; 5 the plugin
parses what came; 6 the interaction is appended; 7 the handle is signed. A stream's handle is signed before step 5 too.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import itertools
import secrets
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from plaudit import ordering
from plaudit.deciding import Cost, Costs, costs_of, decide, labels_of
from plaudit.decoding import channel_spec
from plaudit.domain import DecodeSpec, DomainPlugin, Mode
from plaudit.engine.protocol import EncodedPrompt, Engine, Generated, Job, ReleaseKey, Ticket
from plaudit.engine.text import GrowingText
from plaudit.errors import InvalidField, PluginFailed, UnknownTenant, WrongAction
from plaudit.metrics import Metrics
from plaudit.serving.calls import Call
from plaudit.serving.handle import ANSWER_BYTES, answer_mark
from plaudit.serving.recording import Recorded, Recorder
from plaudit.serving.router import Router, unknown_domain
from plaudit.serving.validate import (
    ChoiceWanted,
    CompletionsWanted,
    Envelope,
    SamplingWish,
    check_option_count,
    refused,
)
from plaudit.settings import PolicySettings
from plaudit.types import (
    Action,
    Candidate,
    Channel,
    Consent,
    FeedbackKind,
    Interaction,
    Option,
    Outcome,
    Prompt,
    Purpose,
    Sampling,
)

ANY_TENANT = "*"
_MODES = {Purpose.SERVE: Mode.SERVE, Purpose.EXPLORE: Mode.EXPLORE, Purpose.EVALUATE: Mode.SERVE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A request whose completions are being generated.

    `head` is its interaction without candidates. `mark` is a random mark of this attempt: a stream's handle leaves with
    its first message, when nobody knows yet what will be shown.
    """

    head: Interaction
    plugin: DomainPlugin
    prompt: Prompt
    jobs: tuple[Job, ...]
    tickets: tuple[Ticket, ...]
    mark: str

    @property
    def candidate_ids(self) -> tuple[str, ...]:
        """Ids of the candidates to come, in order."""
        return tuple(candidate_id(self.head.interaction_id, index) for index in range(len(self.jobs)))


class Generation:
    """Answers requests; its methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        router: Router,
        recorder: Recorder,
        plugins: Mapping[str, DomainPlugin],
        metrics: Metrics,
        *,
        policy: Callable[[Channel], PolicySettings],
        costs: Callable[[Channel], Sequence[Cost]],
        compare_share: Callable[[Channel], float] = lambda _: 0.0,
        consent: Callable[[Channel], Consent] = lambda _: Consent(),
        max_tokens: int,
        tenants: Sequence[str] = (ANY_TENANT,),
    ) -> None:
        self._engine = engine
        self._router = router
        self._recorder = recorder
        self._plugins = plugins
        self._metrics = metrics
        self._policy = policy
        self._costs = costs
        self._compare_share = compare_share
        self._consent = consent
        self._max_tokens = max_tokens
        self._tenants = frozenset(tenants)

    # Completions ---------------------------------------------------------------------------------

    def start(self, wanted: CompletionsWanted, call: Call, *, compare: bool = False) -> Started | Recorded:
        """Steps 1 to 4: the completions are under way when this returns, or what was recorded is found again.

        `compare`: a caller who leaves their number open may get two, in the share that the channel's settings ask for.
        """
        plugin = self._plugin(wanted.envelope, Action.COMPLETION)
        prompt = plugin.render(wanted.envelope.request)
        policy = self._policy(wanted.envelope.channel)
        spec = channel_spec(plugin, prompt, _MODES[wanted.envelope.purpose], policy)
        n = wanted.n or (2 if compare and self._compares(wanted, plugin, spec) else spec.n)
        if len(wanted.versions) > 1 and len(wanted.versions) != n:
            raise refused("release_versions", f"{len(wanted.versions)} entries", f"empty, one entry, or {n} entries")
        consent = wanted.envelope.consent(self._consent(wanted.envelope.channel))
        if (recorded := self._recorder.find(wanted.envelope, Action.COMPLETION, consent, n=wanted.n)) is not None:
            return recorded
        encoded = self._engine.encode(prompt.messages)
        seed = wanted.seed if wanted.seed is not None else seed_of(wanted.envelope.interaction_id)
        with self._router.lease(wanted.envelope.channel, wanted.versions, n, call.remaining()) as routed:
            jobs = tuple(
                Job(
                    prompt=encoded,
                    release=release.key,
                    sampling=resolve(wanted.sampling, spec, release.temperature, self._max_tokens),
                    seed=(seed + index) % 2**64,
                )
                for index, release in enumerate(routed)
            )
            tickets = tuple(self._engine.submit(jobs))
        return Started(
            head=self._head(wanted.envelope, plugin, prompt, encoded, Action.COMPLETION),
            plugin=plugin,
            prompt=prompt,
            jobs=jobs,
            tickets=tickets,
            mark=secrets.token_hex(ANSWER_BYTES),
        )

    def generate(self, wanted: CompletionsWanted, call: Call) -> Recorded:
        """All steps, without intermediate text."""
        started = self.start(wanted, call, compare=True)
        if isinstance(started, Recorded):
            return started
        call.watch(started.tickets)
        return self.finish(started, call.results(started.tickets))

    def _compares(self, wanted: CompletionsWanted, plugin: DomainPlugin, spec: DecodeSpec) -> bool:
        """Whether people shall compare two answers to this request: so decided by its id, if it is sent again too."""
        share = self._compare_share(wanted.envelope.channel)
        if spec.n > 1 or wanted.versions or wanted.envelope.purpose is Purpose.EVALUATE:
            return False
        if not wanted.envelope.consent(self._consent(wanted.envelope.channel)).train:
            return False
        if not {FeedbackKind.CHOICE, FeedbackKind.RANKING} & plugin.declaration.kinds:
            return False
        return _unit_of("compare", wanted.envelope.interaction_id) < share

    def begin(self, started: Started) -> tuple[str, dt.datetime]:
        """The handle of a stream that begins, and when it expires. What it marks is this attempt."""
        return self._recorder.handle(started.head, started.candidate_ids, started.mark, dt.datetime.now(dt.UTC))

    def finish(self, started: Started, results: Sequence[Generated], *, streamed: bool = False) -> Recorded:
        """Steps 5 to 7."""
        candidates = [
            self._candidate(started, index, result, started.plugin.parse(started.prompt, result.text))
            for index, result in enumerate(results)
        ]
        marks = (answer_mark(candidates), *((started.mark,) if streamed else ()))
        return self._record(started, candidates, marks)

    def stop(self, started: Started, sent: Sequence[str]) -> Recorded | None:
        """Records a stream that ended early (caller, deadline, a failing plugin): what went out is what people saw.

        `sent` is the text that went out of each completion; None if that is nothing at all.
        """
        if not any(sent):
            return None
        candidates = []
        for index, (ticket, text) in enumerate(zip(started.tickets, sent, strict=True)):
            ticket.cancel()
            try:
                valid = started.plugin.parse(started.prompt, text).valid
            except PluginFailed:  # it may be what ended the stream
                valid = False
            candidates.append(self._candidate(started, index, ticket.so_far(), Outcome(displayed=text, valid=valid)))
        return self._record(started, candidates, (started.mark,))

    def _candidate(self, started: Started, index: int, result: Generated, outcome: Outcome) -> Candidate:
        job = started.jobs[index]
        self._metrics.tokens.labels("completion").inc(len(result.tokens))
        return Candidate(
            candidate_id=candidate_id(started.head.interaction_id, index),
            release_version=result.release.version,
            release_digest=result.release.digest,
            tokens=result.tokens,
            logprobs_raw=result.logprobs_raw,
            logprobs_sampled=result.logprobs_sampled,
            text=result.text,
            displayed_text=outcome.displayed,
            finish_reason=result.finish_reason,
            sampling=job.sampling,
            seed=job.seed,
            width=result.width,
            valid=outcome.valid,
        )

    def _record(self, started: Started, candidates: Sequence[Candidate], marks: tuple[str, ...]) -> Recorded:
        self._metrics.tokens.labels("prompt").inc(len(started.head.prompt_tokens))
        whole = dataclasses.replace(
            started.head, candidates=tuple(candidates), answers=marks, completed_at=dt.datetime.now(dt.UTC)
        )
        return self._answer(whole)

    # Choices -------------------------------------------------------------------------------------

    def choose(self, wanted: ChoiceWanted, call: Call) -> Recorded:
        """Ranks the options by the probability that the policy writes them and nothing else.

        An option's score is the log-probability of its tokens and of the end of turn after them, under the release's
        temperature: their sum, or their mean per token if the domain declares that. Options that the domain finds
        invalid come last, and are never the decision, unless all of them are invalid.
        """
        envelope = wanted.envelope
        plugin = self._plugin(envelope, Action.CHOICE)
        prompt = plugin.render(envelope.request)
        options = prompt.options or envelope.request.options
        check_option_count(len(options))
        costs = costs_of(plugin.declaration, self._costs(envelope.channel))
        outcomes = []
        for option in options:  # each may take a plugin's whole budget
            call.remaining()
            outcomes.append(plugin.parse(prompt, option.text))
        valid = [outcome.valid for outcome in outcomes]
        option_ids = [option.option_id for option in options]
        consent = envelope.consent(self._consent(envelope.channel))
        if (recorded := self._recorder.find(envelope, Action.CHOICE, consent, option_ids=option_ids)) is not None:
            return recorded
        encoded = self._engine.encode(prompt.messages)
        texts = [self._engine.encode_text(option.text) for option in options]
        check_options(encoded, texts, self._engine.context_length)
        versions = () if wanted.version is None else (wanted.version,)
        with self._router.lease(envelope.channel, versions, 1, call.remaining()) as (release,):
            ticket = self._engine.score_options(encoded, texts, release.key, release.temperature)
        call.watch([ticket])
        logprobs = call.result(ticket)
        scores = [ordering.score_of(each, plugin.declaration.option_score) for each in logprobs]
        seed = seed_of(envelope.interaction_id) if envelope.purpose is Purpose.EXPLORE else None
        ranked = _ranked(options, scores, valid, plugin.declaration.labels, costs, seed)
        candidates = [
            Candidate(
                candidate_id=candidate_id(envelope.interaction_id, place, options[place].option_id),
                release_version=release.key.version,
                release_digest=release.key.digest,
                tokens=(*texts[place], self._engine.end_of_turn),
                logprobs_raw=(),
                logprobs_sampled=logprobs[place],
                text=options[place].text,
                displayed_text=outcomes[place].displayed,
                finish_reason=None,
                sampling=Sampling(temperature=release.temperature),
                seed=seed or 0,
                width=0,
                probability=ranked.probabilities[place],
                propensity=propensity,
                valid=valid[place],
                option_id=options[place].option_id,
                place=place,
            )
            for place, propensity in zip(ranked.order.places, ranked.order.propensities, strict=True)
        ]
        self._metrics.tokens.labels("prompt").inc(len(encoded.tokens))
        whole = dataclasses.replace(
            self._head(envelope, plugin, prompt, encoded, Action.CHOICE),
            candidates=tuple(candidates),
            order_logprob=ranked.order.logprob,
            answers=(answer_mark(candidates),),
            decision=ranked.decided.option_id,
        )
        return self._answer(whole)

    def pieces(self, candidate: Candidate) -> list[str]:
        """What each token of a completion adds to its text as generated; together they are that text."""
        growing = GrowingText(self._engine.decode)
        ends = []
        for token in candidate.tokens:
            growing.add(token)
            ends.append(len(growing.text))  # beyond the text is what a stop string cut off
        return [candidate.text[start:end] for start, end in itertools.pairwise([0, *ends])]

    # Common --------------------------------------------------------------------------------------

    def _plugin(self, envelope: Envelope, action: Action) -> DomainPlugin:
        plugin = self._plugins.get(envelope.channel.domain)
        if plugin is None:
            raise unknown_domain(envelope.channel.domain, self._plugins)
        if not self._tenants & {envelope.channel.tenant, ANY_TENANT}:
            raise UnknownTenant(
                f"this service has no tenant {envelope.channel.tenant!r}; its operator names tenants in serve.tenants",
                tenant=envelope.channel.tenant,
            )
        declared = plugin.declaration.action
        if declared is not action:
            call = "Generate" if declared is Action.COMPLETION else "Choose"
            raise WrongAction(
                f"the domain {envelope.channel.domain!r} makes a {declared}; call {call}",
                domain=envelope.channel.domain,
                action=declared,
            )
        return plugin

    def _answer(self, interaction: Interaction) -> Recorded:
        """Records it, and tells the router which releases callers now have answers of."""
        recorded = self._recorder.record(interaction)
        if interaction.purpose is not Purpose.EVALUATE:
            for candidate in interaction.candidates:
                release = ReleaseKey(str(interaction.channel), candidate.release_version, candidate.release_digest)
                self._router.answered(interaction.channel, release)
        return recorded

    def _head(
        self, envelope: Envelope, plugin: DomainPlugin, prompt: Prompt, encoded: EncodedPrompt, action: Action
    ) -> Interaction:
        """The interaction of a request before it has candidates."""
        tenant = envelope.channel.tenant
        return Interaction(
            interaction_id=envelope.interaction_id,
            channel=envelope.channel,
            purpose=envelope.purpose,
            action=action,
            messages=envelope.request.messages,
            prompt_group=prompt.group,
            candidates=(),
            completed_at=dt.datetime.now(dt.UTC),
            prompt_tokens=encoded.tokens,
            session_id=envelope.session_id,
            end_user=self._recorder.pseudonym(tenant, envelope.end_user),
            rater=self._recorder.pseudonym(tenant, envelope.rater),
            passages=envelope.request.passages,
            plugin_version=plugin.declaration.version,
            policy_version=plugin.declaration.policy_version,
            base_digest=self._engine.base_digest,
            tags=envelope.tags,
            base_dtype=self._engine.base_dtype,
            consent=envelope.consent(self._consent(envelope.channel)),
        )


def resolve(wish: SamplingWish, spec: DecodeSpec, release_temperature: float, max_tokens: int) -> Sampling:
    """Sampling in force: the request over the domain's decode_spec over the release's temperature.

    Numbers are rounded to the float32 that the log keeps, so that a replay from the log samples from the same
    distribution to the last bit.
    """
    temperature = spec.temperature if wish.temperature is None else wish.temperature
    return Sampling(
        temperature=_as_logged(release_temperature if temperature is None else temperature),
        top_p=_as_logged(spec.sampling.top_p if wish.top_p is None else wish.top_p),
        top_k=spec.sampling.top_k if wish.top_k is None else wish.top_k,
        max_tokens=min(spec.sampling.max_tokens, max_tokens) if wish.max_tokens is None else wish.max_tokens,
        stop=wish.stop or spec.sampling.stop,
    )


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Options in the order to be shown, their probabilities of being first, and the one to act on."""

    order: ordering.Order
    probabilities: Sequence[float]
    decided: Option


def _ranked(
    options: Sequence[Option],
    scores: Sequence[float],
    valid: Sequence[bool],
    labels: frozenset[str],
    costs: Costs,
    seed: int | None,
) -> _Ranked:
    """The most probable option first and the cheapest decision; with a `seed` (EXPLORE) both are drawn.

    The decision is then the option that was drawn first: whether people act on the order or on the decision, it was
    drawn with the probability that the record has.
    """
    probabilities = ordering.first_probabilities(scores, valid)
    if seed is not None:
        order = ordering.draw(scores, seed, valid)
        return _Ranked(order, probabilities, options[order.places[0]])
    decided = decide(probabilities, labels=labels_of(options, labels), costs=costs, valid=valid)
    return _Ranked(ordering.most_probable(scores, valid), probabilities, options[decided])


def seed_of(interaction_id: str) -> int:
    """A seed for a request that brings none: random because the id is, and the same when the request is sent again."""
    return _number_of("seed", interaction_id) >> 1


def _number_of(what: str, interaction_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{what}\0{interaction_id}".encode()).digest()[:8], "big")


def _unit_of(what: str, interaction_id: str) -> float:
    return _number_of(what, interaction_id) / 2**64


def candidate_id(interaction_id: str, index: int, option_id: str = "") -> str:
    """Id of a candidate, a name-based UUID: known before its first token, and the same if the request is sent again.

    Feedback never lands on a text that its rater did not see because of the mark in the handle (`answer_mark`).
    """
    return str(uuid.uuid5(uuid.UUID(interaction_id), f"{index}\0{option_id}"))


def _as_logged(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def check_options(encoded: EncodedPrompt, texts: Sequence[Sequence[int]], context_length: int) -> None:
    """Raises InvalidField if an option has no tokens or those of another one, or does not fit behind the prompt."""
    places: dict[tuple[int, ...], int] = {}
    for index, tokens in enumerate(texts):
        earlier = places.setdefault(tuple(tokens), index)
        if tokens and earlier != index:
            # Different texts, and one to the model: half of what it would say about either.
            raise refused(f"options[{index}].text", f"to the model the same as options[{earlier}].text", "another text")
        if not tokens:
            raise InvalidField(f"options[{index}].text has no tokens; give a text", field=f"options[{index}].text")
        if len(encoded.tokens) + len(tokens) > context_length:
            raise refused(
                f"options[{index}].text",
                f"{len(tokens)} tokens",
                f"at most {context_length - len(encoded.tokens)} tokens after this prompt",
            )
