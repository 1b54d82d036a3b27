"""Step 4: what the gate will decide by: the candidate's answers to gate prompts beside those of base and live.

Judged by the gate's reward model, on prompts that were never rolled out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plaudit.engine import adapter_files, adapters
from plaudit.engine.protocol import UNREGISTERED, ReleaseKey
from plaudit.learner.context import Turn
from plaudit.learner.measure import Measurer, kl_by_prompt, logprobs_of
from plaudit.learner.steps.fit import Fitted
from plaudit.learner.steps.freeze import Frozen
from plaudit.policy.optimizer import Optimised
from plaudit.policy.rollout import Rollout, collate
from plaudit.release.artifacts import file_digest
from plaudit.release.gate import GateMeasurements
from plaudit.release.manifest import Probe
from plaudit.release.probes import FailedAnswer, samples_needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the gate decides by. `kl` is the mean to the base, nats per sequence; `proof` is for the replicas.

    `failed` are answers that did harm, for an operator.
    """

    measurements: GateMeasurements
    kl: float
    proof: tuple[Probe, ...]
    failed: tuple[FailedAnswer, ...]


def measure(turn: Turn, frozen: Frozen, fitted: Fitted, optimised: Optimised) -> Measured:
    """Ask candidate, base and live the gate's prompts."""
    turn.begin(4, "measure")
    settings, references = turn.settings.gate, frozen.references
    temperature = turn.sampling.temperature
    measurer = Measurer(
        turn.base,
        turn.engine,
        turn.plugin,
        fitted.judge,
        references,
        turn.sampling,
        samples=settings.samples,
        start_layer=turn.start_layer,
        seed=turn.seed * 7919 + 1,
        detail=turn.tell,
    )
    digest = file_digest(optimised.adapter / adapter_files.WEIGHTS)
    with (
        _staged(turn, ReleaseKey(str(turn.channel), UNREGISTERED, digest), optimised.adapter, temperature) as key,
        _loaded(turn, "policy", optimised.adapter),
    ):
        made = measurer.sampled(frozen.gate, key, "candidate")
        needed = samples_needed(settings.probe_rate, settings.probe_power)
        with _live(turn) as live:
            probes, failed = measurer.probes(key, turn.base_key, live, needed)
        proof = measurer.proof(key, "policy", temperature)
    references.complete(frozen.gate, min(2, settings.samples), seed=turn.seed * 17 + 3)
    scores, said = measurer.judged(made)
    base_scores, base_said = measurer.base_answers(frozen.gate)
    rollout = collate(made, turn.base, turn.start_layer)
    kl_base = _kl(turn, rollout, None)
    wins_base = measurer.wins(scores, base_scores)
    wins_live, kl_live = wins_base, kl_base
    if turn.state.live:
        wins_live, kl_live = _against_live(turn, frozen, measurer, scores, rollout)
    kl = sum(kl_base) / len(kl_base)
    turn.learner.metrics.policy_kl.labels(str(turn.channel)).set(kl)
    measurements = GateMeasurements(
        wins_base=wins_base,
        wins_live=wins_live,
        kl_base=kl_base,
        kl_live=kl_live,
        candidate=tuple(said),
        base=tuple(base_said),
        probes=probes,
        comparisons=tuple(fitted.report.outcomes),
        live_comparisons=fitted.live_outcomes,
        live_is_base=not turn.state.live,
        rater_cap=turn.settings.reward.rater_cap,
    )
    return Measured(measurements=measurements, kl=kl, proof=proof, failed=failed)


def _against_live(
    turn: Turn, frozen: Frozen, measurer: Measurer, scores: list[list[float]], rollout: Rollout
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Win-rates and KL by prompt against the live release."""
    with _live(turn) as key:
        assert key is not None, "asked only if a release is live"
        live_scores, _ = measurer.judged(measurer.sampled(frozen.gate, key, "live"))
    with _loaded(turn, "live", _live_adapter(turn)):
        return measurer.wins(scores, live_scores), _kl(turn, rollout, "live")


def _kl(turn: Turn, rollout: Rollout, adapter: str | None) -> tuple[float, ...]:
    """KL of the candidate to the base (None) or to a loaded adapter, by prompt, nats per sequence."""
    other = logprobs_of(turn.base, rollout, adapter, turn.start_layer, turn.sampling.temperature)
    return kl_by_prompt(rollout, other, turn.settings.gate.samples)


def _live_adapter(turn: Turn) -> Path:
    folder = turn.learner.registry.fetch(
        turn.channel, turn.state.live, turn.folder / "live", base_digest=turn.base.digest
    )
    return folder / "policy"


@contextlib.contextmanager
def _live(turn: Turn) -> Iterator[ReleaseKey | None]:
    """The live release in the engine for the length of a block; None if the base is live."""
    if not turn.state.live:
        yield None
        return
    registry, channel = turn.learner.registry, turn.channel
    row = registry.release(channel, turn.state.live)
    temperature = registry.manifest(channel, row.version).temperature
    key = ReleaseKey(str(channel), row.version, row.digest)
    with _staged(turn, key, _live_adapter(turn), temperature):
        yield key


@contextlib.contextmanager
def _staged(turn: Turn, key: ReleaseKey, adapter: Path, temperature: float) -> Iterator[ReleaseKey]:
    turn.engine.stage(key, adapter, temperature=temperature)
    try:
        yield key
    finally:
        turn.engine.unstage(key)


@contextlib.contextmanager
def _loaded(turn: Turn, name: str, adapter: Path) -> Iterator[None]:
    adapters.load(turn.base, name, adapter)
    try:
        yield
    finally:
        adapters.remove(turn.base, name)
