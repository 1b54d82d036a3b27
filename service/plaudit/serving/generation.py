"""From a checked request to a recorded interaction.

What enters: a checked request, the plugin of its domain, the engine, the router. What leaves: an Interaction in the
log, and with it a signed handle. Never answers before the record is durable; never knows gRPC.

A completion, in steps: 1 the plugin renders the prompt; 2 the engine encodes it; 3 the router pins a release to each
candidate; 4 the engine generates; 5 the plugin parses what came; 6 the interaction is appended; 7 the handle is signed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import math
import struct
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plaudit import __version__, ordering
from plaudit.domain import DecodeSpec, DomainPlugin, Mode, OptionScore
from plaudit.engine.protocol import EncodedPrompt, Engine, Generated, Job, Ticket
from plaudit.errors import InvalidField, UnknownTenant, WrongAction
from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.codec import encode_interaction
from plaudit.metrics import Metrics
from plaudit.serving.calls import Call
from plaudit.serving.handle import HandleClaims, HandleSigner, answer_mark, pseudonym
from plaudit.serving.router import Router, unknown_domain
from plaudit.serving.validate import ChoiceWanted, CompletionsWanted, Envelope, SamplingWish, refused
from plaudit.telemetry import traceparent
from plaudit.types import Action, Candidate, Interaction, Prompt, Purpose, Sampling

ANY_TENANT = "*"
PRODUCER = f"plaudit-serve/{__version__}"
_MODES = {Purpose.SERVE: Mode.SERVE, Purpose.EXPLORE: Mode.EXPLORE, Purpose.EVALUATE: Mode.SERVE}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A durable interaction and the handle that goes with it."""

    interaction: Interaction
    handle: str
    expires_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Started:
    """A request whose completions are being generated."""

    wanted: CompletionsWanted
    plugin: DomainPlugin
    prompt: Prompt
    jobs: tuple[Job, ...]
    tickets: tuple[Ticket, ...]


class Generation:
    """Answers requests; its methods may be called from any thread."""

    def __init__(
        self,
        engine: Engine,
        router: Router,
        log: EventLog,
        plugins: Mapping[str, DomainPlugin],
        signer: HandleSigner,
        pseudonym_key: bytes,
        metrics: Metrics,
        *,
        max_tokens: int,
        tenants: Sequence[str] = (ANY_TENANT,),
    ) -> None:
        self._tenants = frozenset(tenants)
        self._engine = engine
        self._router = router
        self._log = log
        self._plugins = plugins
        self._signer = signer
        self._pseudonym_key = pseudonym_key
        self._metrics = metrics
        self._max_tokens = max_tokens

    # Completions ---------------------------------------------------------------------------------

    def start(self, wanted: CompletionsWanted) -> Started:
        """Steps 1 to 4: the completions are under way when this returns."""
        plugin = self._plugin(wanted.envelope, Action.COMPLETION)
        prompt = plugin.render(wanted.envelope.request)
        spec = plugin.decode_spec(prompt, _MODES[wanted.envelope.purpose])
        n = wanted.n or spec.n
        if len(wanted.versions) > 1 and len(wanted.versions) != n:
            raise refused("release_versions", f"{len(wanted.versions)} entries", f"empty, one entry, or {n} entries")
        encoded = self._engine.encode(prompt.messages)
        seed = wanted.seed if wanted.seed is not None else seed_of(wanted.envelope.interaction_id)
        with self._router.lease(wanted.envelope.channel, wanted.versions, n) as routed:
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
        return Started(wanted, plugin, prompt, jobs, tickets)

    def generate(self, wanted: CompletionsWanted, call: Call) -> Recorded:
        """All steps, without intermediate text."""
        started = self.start(wanted)
        call.watch(started.tickets)
        return self.finish(started, call.results(started.tickets))

    def finish(self, started: Started, results: Sequence[Generated]) -> Recorded:
        """Steps 5 to 7."""
        envelope = started.wanted.envelope
        candidates = []
        for index, (job, result) in enumerate(zip(started.jobs, results, strict=True)):
            outcome = started.plugin.parse(started.prompt, result.text)
            candidates.append(
                Candidate(
                    candidate_id=candidate_id(envelope.interaction_id, index),
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
            )
            self._metrics.tokens.labels("completion").inc(len(result.tokens))
        self._metrics.tokens.labels("prompt").inc(len(started.jobs[0].prompt.tokens))
        tokens = started.jobs[0].prompt.tokens
        return self._record(envelope, started.plugin, started.prompt, tokens, Action.COMPLETION, candidates)

    # Choices -------------------------------------------------------------------------------------

    def choose(self, wanted: ChoiceWanted, call: Call) -> Recorded:
        """Ranks the options by the probability that the policy writes them and nothing else.

        An option's score is the log-probability of its tokens and of the end of turn behind them, under the release's
        temperature: their sum, or their mean per token if the domain declares that. SERVE shows the most probable
        first; EXPLORE draws the order (`plaudit.ordering`) and records its exact log-probability.
        """
        envelope = wanted.envelope
        plugin = self._plugin(envelope, Action.CHOICE)
        prompt = plugin.render(envelope.request)
        options = prompt.options or envelope.request.options
        encoded = self._engine.encode(prompt.messages)
        texts = [self._engine.encode_text(option.text) for option in options]
        check_options(encoded, texts, self._engine.context_length)
        versions = () if wanted.version is None else (wanted.version,)
        with self._router.lease(envelope.channel, versions, 1) as (release,):
            ticket = self._engine.score_options(encoded, texts, release.key, release.temperature)
        call.watch([ticket])
        logprobs = call.result(ticket)
        scores = [score_of(each, plugin.declaration.option_score) for each in logprobs]
        if envelope.purpose is Purpose.EXPLORE:
            order = ordering.draw(scores, seed_of(envelope.interaction_id))
        else:
            order = ordering.most_probable(scores)
        probabilities = ordering.first_probabilities(scores)
        candidates = []
        for place, propensity in zip(order.places, order.propensities, strict=True):
            option = options[place]
            outcome = plugin.parse(prompt, option.text)
            candidates.append(
                Candidate(
                    candidate_id=candidate_id(envelope.interaction_id, place, option.option_id),
                    release_version=release.key.version,
                    release_digest=release.key.digest,
                    tokens=(*texts[place], self._engine.end_of_turn),
                    logprobs_raw=(),
                    logprobs_sampled=logprobs[place],
                    text=option.text,
                    displayed_text=outcome.displayed,
                    finish_reason=None,
                    sampling=Sampling(temperature=release.temperature),
                    seed=seed_of(envelope.interaction_id) if envelope.purpose is Purpose.EXPLORE else 0,
                    width=0,
                    probability=probabilities[place],
                    propensity=propensity,
                    valid=outcome.valid,
                    option_id=option.option_id,
                )
            )
        self._metrics.tokens.labels("prompt").inc(len(encoded.tokens))
        return self._record(envelope, plugin, prompt, encoded.tokens, Action.CHOICE, candidates, order.logprob)

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

    def _record(
        self,
        envelope: Envelope,
        plugin: DomainPlugin,
        prompt: Prompt,
        prompt_tokens: tuple[int, ...],
        action: Action,
        candidates: Sequence[Candidate],
        order_logprob: float = 0.0,
    ) -> Recorded:
        now = dt.datetime.now(dt.UTC)
        channel = envelope.channel
        rater = pseudonym(self._pseudonym_key, channel.tenant, envelope.rater)
        answer = answer_mark(candidates)
        interaction = Interaction(
            interaction_id=envelope.interaction_id,
            channel=channel,
            purpose=envelope.purpose,
            action=action,
            messages=envelope.request.messages,
            prompt_group=prompt.group,
            candidates=tuple(candidates),
            completed_at=now,
            prompt_tokens=prompt_tokens,
            order_logprob=order_logprob,
            answers=(answer,),
            session_id=envelope.session_id,
            end_user=pseudonym(self._pseudonym_key, channel.tenant, envelope.end_user),
            rater=rater,
            passages=envelope.request.passages,
            plugin_version=plugin.declaration.version,
            base_digest=self._engine.base_digest,
        )
        self._append(interaction)
        expires_at = self._signer.expiry(now)
        handle = self._signer.sign(
            HandleClaims(
                tenant=channel.tenant,
                domain=channel.domain,
                interaction_id=interaction.interaction_id,
                candidate_ids=tuple(candidate.candidate_id for candidate in candidates),
                answer=answer,
                rater=rater,
                expires_at=expires_at,
            )
        )
        return Recorded(interaction, handle, expires_at)

    def _append(self, interaction: Interaction) -> None:
        started = time.perf_counter()
        record = encode_interaction(interaction, producer=PRODUCER, traceparent=traceparent())
        self._log.append(Topic.INTERACTIONS, interaction.interaction_id, record)
        self._metrics.append_seconds.labels(Topic.INTERACTIONS.value).observe(time.perf_counter() - started)
        for candidate in interaction.candidates:
            valid = "true" if candidate.valid else "false"
            self._metrics.completions.labels(str(interaction.channel), interaction.purpose.value, valid).inc()


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


def seed_of(interaction_id: str) -> int:
    """A seed for a request that brings none: random because the id is, and the same when the request is sent again."""
    return int.from_bytes(hashlib.sha256(f"seed\0{interaction_id}".encode()).digest()[:8], "big") >> 1


def candidate_id(interaction_id: str, index: int, option_id: str = "") -> str:
    """Id of a candidate, a name-based UUID: known before its first token, and the same if the request is sent again.

    Feedback never lands on a text that its rater did not see because of the mark in the handle (`answer_mark`).
    """
    return str(uuid.uuid5(uuid.UUID(interaction_id), f"{index}\0{option_id}"))


def score_of(logprobs: Sequence[float], how: OptionScore) -> float:
    """Score (nats) of an option from the log-probs of its tokens and of its end."""
    total = math.fsum(logprobs)
    return total / len(logprobs) if how is OptionScore.MEAN else total


def _as_logged(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def check_options(encoded: EncodedPrompt, texts: Sequence[Sequence[int]], context_length: int) -> None:
    """Raises InvalidField where an option has no tokens or does not fit behind the prompt."""
    for index, tokens in enumerate(texts):
        if not tokens:
            raise InvalidField(f"options[{index}].text has no tokens; give a text", field=f"options[{index}].text")
        if len(encoded.tokens) + len(tokens) > context_length:
            raise refused(
                f"options[{index}].text",
                f"{len(tokens)} tokens",
                f"at most {context_length - len(encoded.tokens)} tokens after this prompt",
            )
