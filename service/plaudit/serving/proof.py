"""Proves that a staged release is what was trained.

What enters: a release's manifest and an engine in which it and the base are staged. What leaves: the two differences
that were measured, or ProofFailed. Never changes what is served.

The probes of a manifest are completions with the trainer's log-probs; the engine must give the same
within a tolerance, and log-probs that differ from the base's, or the adapter was not applied at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from plaudit.engine.protocol import EncodedPrompt, Engine, ReleaseKey
from plaudit.errors import ProofFailed
from plaudit.release.manifest import Manifest

# float32: the trainer and the engine sum in another order; ten steps of that stay far below 1e-3 nats.
EXACT_GREATEST = 1e-3
# vLLM in float32: other kernels for attention, norms and adapters. With adapters that move the tiny model by seven nats
# a token the greatest difference was 1.2e-3; the smallest from another adapter is a thousand times that.
REMOTE_GREATEST = 5e-3
# 16 bits: the mean over tokens, and a fifth of what the adapter changes. On SmolLM2-135M two passes with linears in
# bfloat16 differ from each other, as from fp32, by .035 on average, for roundings add up over layers.
COARSE_MEAN = 5e-2
COARSE_SHARE = 0.2
# Weights of 8 bits, a scale per 32 inputs: off by .04 to .05 on average on SmolLM2-135M (ADR 42), by more on small
# models. No adapter is off by all that the right one changes, and another of its size by 1.4 of it.
NARROW_MEAN = 0.1
NARROW_SHARE = 0.5
FROM_BASE_MEAN = 1e-2


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far served log-probs may be from the trainer's. `greatest` (nats) of any token; None: their mean instead.

    The mean is bounded by `mean` (nats) and by a `share` of what the adapter changes.
    """

    greatest: float | None
    mean: float = COARSE_MEAN
    share: float = COARSE_SHARE

    @classmethod
    def of(cls, kind: str, dtype: str) -> Tolerance:
        """That of an engine of a kind (engine.kind) that computes the base in `dtype`."""
        if dtype == "int8":
            return NARROW
        if dtype != "float32":
            return COARSE
        return REMOTE if kind == "vllm" else EXACT


EXACT, REMOTE, COARSE = Tolerance(EXACT_GREATEST), Tolerance(REMOTE_GREATEST), Tolerance(None)
NARROW = Tolerance(None, NARROW_MEAN, NARROW_SHARE)


@dataclass(frozen=True, slots=True)
class Proof:
    """Differences in nats: greatest and mean from the trainer, mean from the base; NaN if nothing was measured."""

    greatest: float
    mean: float
    from_base: float


def prove(engine: Engine, key: ReleaseKey, base: ReleaseKey, manifest: Manifest, *, tolerance: Tolerance) -> Proof:
    """The measured differences; raises ProofFailed if they break a tolerance.

    `tolerance` is this engine's; if the trainer did not compute in float32 it is COARSE at least.
    `base` is the staged version 0. Version 0 itself needs no probes; every other version needs at least one.
    """
    if not manifest.probes:
        if key.version == 0:
            return Proof(math.nan, math.nan, math.nan)
        raise ProofFailed(
            f"{key}: the manifest has no probes, so nothing shows that it is what was trained; train it again",
            version=key.version,
            difference="unknown",
            tolerance=EXACT_GREATEST,
        )
    trained: list[float] = []
    served: list[float] = []
    without: list[float] = []
    for probe in manifest.probes:
        prompt = EncodedPrompt(probe.prompt_tokens)
        completions = [probe.completion_tokens]
        trained += probe.logprobs
        served += engine.score(prompt, completions, key, manifest.temperature)[0]
        without += engine.score(prompt, completions, base, manifest.temperature)[0]
    apart = [abs(x - y) for x, y in zip(served, trained, strict=True)]
    from_base = [abs(x - y) for x, y in zip(served, without, strict=True)]
    proof = Proof(_greatest(apart), sum(apart) / len(apart), sum(from_base) / len(from_base))
    exact = manifest.base_dtype in (None, "float32")
    _check(key, proof, tolerance if exact or tolerance.greatest is None else COARSE)
    return proof


def _greatest(values: list[float]) -> float:
    """The greatest value; NaN if any is, which `max` would lose."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _check(key: ReleaseKey, proof: Proof, tolerance: Tolerance) -> None:
    """Each limit is written as what must hold, because comparisons with NaN are false."""
    if tolerance.greatest is not None:
        measured, limit, what = proof.greatest, tolerance.greatest, "greatest"
    else:
        share = tolerance.share * proof.from_base if key.version else tolerance.mean
        measured, limit, what = proof.mean, min(tolerance.mean, share), "mean"
    if not measured <= limit:
        raise ProofFailed(
            f"{key}: the {what} difference from the trainer's log-probs is {measured:.3g}, above {limit:.3g}",
            version=key.version,
            difference=measured,
            tolerance=limit,
        )
    if key.version == 0:
        if not proof.from_base <= 0.0:
            raise ProofFailed(
                f"{key}: version 0 must equal the base", version=0, difference=proof.from_base, tolerance=0
            )
    elif not proof.from_base >= FROM_BASE_MEAN:
        raise ProofFailed(
            f"{key}: its log-probs differ from the base's by {proof.from_base:.3g} on average, less than "
            f"{FROM_BASE_MEAN:g}: the adapter does nothing here",
            version=key.version,
            difference=proof.from_base,
            tolerance=FROM_BASE_MEAN,
        )
