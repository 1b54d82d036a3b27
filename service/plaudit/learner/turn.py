"""One turn: evidence in, a decided release out.

Steps (the same numbers in the code, in docs/learner.md and as fail points `learn.1` ...):

1. freeze    evidence, its offsets and digest, in one read
2. reward    fit the reward model (train raters, train groups) and the gate's own (gate raters); ask whether the
             first may steer anything (calibration raters)
3. policy    PPO on fresh rollouts of train groups, from the live adapter
4. measure   answers to gate groups against base and live, KL, texts, probes, the proof's log-probs
5. register  artifacts and manifest, once; the version is taken here
6. decide    the gate's decision, recorded with its numbers
7. promote   compare-and-set, then the event

Nothing before step 5 leaves a trace, so a turn that dies there begins again. What a later death left behind is ended
by `recover`: a release without a decision is rejected, a gated one is promoted.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import platform
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
import torch

import plaudit
from plaudit.domain import DomainPlugin
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import UNREGISTERED, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.eventlog import EventLog
from plaudit.evidence.splits import Split, group_split
from plaudit.evidence.store import EvidenceStore, FrozenDataSet
from plaudit.failpoints import fail_point
from plaudit.learner.measure import Measurer, kl_by_prompt, logprobs_of
from plaudit.learner.references import References
from plaudit.learner.rewards import ModelReward
from plaudit.learner.status import Status
from plaudit.metrics import Metrics
from plaudit.policy.optimizer import Optimised, PolicyTask, hold_out
from plaudit.policy.rollout import Sample, TrainPrompt, collate
from plaudit.policy.train import Ppo
from plaudit.release import gate, publish
from plaudit.release.artifacts import file_digest, list_artifacts
from plaudit.release.manifest import ADAPTER_WEIGHTS, Adapter, Manifest, Offsets, folder_digest
from plaudit.release.moves import Promote, ReleaseRow, ReleaseState
from plaudit.release.registry import Registry
from plaudit.reward.calibration import RewardReport, calibrate, measure
from plaudit.reward.dataset import collect, comparisons
from plaudit.reward.fit import fit_reward
from plaudit.reward.model import RewardModel, trunk_cache
from plaudit.reward.trunk import TrunkCache
from plaudit.settings import Settings
from plaudit.types import Channel, Request, Sampling

log = structlog.get_logger(__name__)

ACTOR = "learner"
PRODUCER = f"plaudit-learn/{plaudit.__version__}"


class TurnOutcome(StrEnum):
    """How a turn ended."""

    PROMOTED = "promoted"
    GATED = "gated"
    REJECTED = "rejected"
    WAITED = "waited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What every turn of a process shares."""

    settings: Settings
    base: Base
    engine: TorchEngine
    log: EventLog
    store: EvidenceStore
    registry: Registry
    plugins: Mapping[str, DomainPlugin]
    metrics: Metrics
    status: Status


@dataclass(slots=True)
class _Made:
    """What the steps of a turn hand on."""

    data: FrozenDataSet
    references: References
    train: list[TrainPrompt]
    gate: list[TrainPrompt]
    cache: TrunkCache
    reward: RewardModel | None = None
    judge: RewardModel | None = None
    report: RewardReport | None = None
    live_outcomes: tuple[tuple[str, bool], ...] | None = None
    live: Path | None = None
    optimised: Optimised | None = None
    candidate: list[Sample] = field(default_factory=list)
    manifest_parts: dict[str, Any] = field(default_factory=dict)


class Turn:
    """One turn of one channel. `seed` fixes everything that is drawn, and `as_of` the age of evidence.

    With both from a manifest, the same log and the same versions the turn comes to the same adapter.
    """

    def __init__(self, shop: Workshop, channel: Channel, seed: int, as_of: dt.datetime | None = None) -> None:
        self.shop, self.channel, self.seed, self.as_of = shop, channel, seed, as_of
        self.plugin = shop.plugins[channel.domain]
        self.settings = shop.settings
        state = shop.registry.state(channel)
        assert state is not None, "a channel has a state once it has served"
        self.state = state
        self.start_layer = adapters.start_layer(shop.base, self.settings.model.adapter_layers)
        self.base_key = ReleaseKey(str(channel), 0, shop.registry.release(channel, 0).digest)
        policy = self.settings.policy
        self.sampling = Sampling(temperature=policy.temperature, max_tokens=policy.max_tokens)

    def run(self) -> TurnOutcome:
        """Run the turn's steps; raises what broke it, and then nothing is promoted."""
        with contextlib.ExitStack() as cleanup:
            work = Path(tempfile.mkdtemp(prefix="plaudit-turn-"))
            cleanup.callback(shutil.rmtree, work, ignore_errors=True)
            self.shop.engine.stage(self.base_key, None, temperature=self.settings.policy.temperature)
            made = self._freeze()
            cleanup.callback(self._close, made)
            if not self._fit(made):
                return TurnOutcome.WAITED
            with self._policy(made, work) as key:
                decision_inputs = self._measure(made, key, work)
            row = self._register(made, work)
            decision = self._decide(made, row, decision_inputs)
            if not decision.accepted:
                return TurnOutcome.REJECTED
            if not self.settings.learn.promote or self.state.pinned:
                return TurnOutcome.GATED
            promote(self.shop, self.channel, row.version)
            return TurnOutcome.PROMOTED

    def _begin(self, number: int, name: str) -> None:
        fail_point(f"learn.{number}")
        self.shop.status.step(number, name)

    def _close(self, made: _Made) -> None:
        for model in (made.reward, made.judge):
            if model is not None:
                model.close()
        self.shop.status.end_step()

    # 1. freeze -----------------------------------------------------------------------------------

    def _freeze(self) -> _Made:
        self._begin(1, "freeze")
        shop = self.shop
        salt = shop.registry.salt(self.channel)
        data = shop.store.freeze(self.channel, salt, self.as_of)
        prompts: dict[Split, list[TrainPrompt]] = {Split.TRAIN: [], Split.GATE: [], Split.CALIBRATION: []}
        for row in shop.store.prompts(self.channel):
            rendered = self.plugin.render(Request(messages=row.messages, passages=row.passages))
            encoded = shop.engine.encode(rendered.messages)
            if len(encoded.tokens) + self.sampling.max_tokens <= shop.engine.context_length:
                split = group_split(salt, row.group)
                prompts[split].append(TrainPrompt(rendered=rendered, encoded=encoded))
        # The order of the draw must not depend on when prompts came.
        draw = random.Random(self.seed)
        for several in prompts.values():
            several.sort(key=lambda p: p.group)
            draw.shuffle(several)
        references = References(shop.base, self.plugin, shop.engine, self.base_key, self.sampling)
        references.take_from(data)
        return _Made(
            data=data,
            references=references,
            train=prompts[Split.TRAIN],
            gate=prompts[Split.GATE][: self.settings.gate.prompts],
            cache=trunk_cache(shop.base, self.settings.reward),
        )

    # 2. reward -----------------------------------------------------------------------------------

    def _fit(self, made: _Made) -> bool:
        """Fit both reward models; False where the first may not steer a policy yet."""
        self._begin(2, "reward")
        settings, base = self.settings, self.shop.base
        held_out = comparisons(collect(made.data, Split.CALIBRATION, base, settings.reward))
        raters = len({c.who for c in held_out})
        if len(held_out) < settings.gate.reward_comparisons or raters < settings.gate.reward_raters:
            log.warning("turn waits", comparisons=len(held_out), raters=raters)
            self.shop.status.detail(f"waits: {len(held_out)} comparisons of {raters} calibration raters")
            return False
        detail = self.shop.status.detail
        made.reward = fit_reward(
            base,
            made.data,
            made.references.by_group(),
            settings.reward,
            settings.model,
            split=Split.TRAIN,
            seed=self.seed,
            name="reward",
            progress=lambda step, steps, loss: detail(f"reward model: step {step}/{steps}, loss {loss:.3f}"),
            cache=made.cache,
        )
        detail("calibration")
        made.report = calibrate(made.reward, made.data, cache=made.cache)
        made.live_outcomes = self._live_outcomes(made)
        self.shop.metrics.reward_accuracy.labels(str(self.channel)).set(made.report.accuracy)
        self.shop.metrics.reward_calibration_error.labels(str(self.channel)).set(made.report.ece)
        detail("the gate's reward model")
        # Heads alone: gate raters are a fifth of all, and an adapter would have little to learn from.
        alone = settings.reward.model_copy(update={"adapter": False})
        made.judge = fit_reward(
            base,
            made.data,
            made.references.by_group(),
            alone,
            settings.model,
            split=Split.GATE,
            seed=self.seed + 1,
            name="gate",
            treatment=made.reward.treatment,
            cache=made.cache,
        )
        checks = gate.reward_gate(made.report.outcomes, made.live_outcomes, settings.gate, seed=self.seed)
        outcome = gate.reward_outcome(checks)
        log.info("reward model", outcome=str(outcome), accuracy=made.report.accuracy, ece=made.report.ece)
        return outcome is gate.Outcome.ACCEPT

    def _live_outcomes(self, made: _Made) -> tuple[tuple[str, bool], ...] | None:
        """The live release's reward model on the same comparisons; None where the base is live."""
        if self.state.live == 0:
            return None
        with tempfile.TemporaryDirectory() as folder:
            release = self.shop.registry.fetch(self.channel, self.state.live, Path(folder) / "release")
            live = RewardModel.load(self.shop.base, release / "reward", name="live-reward", cache=made.cache)
            found = comparisons(collect(made.data, Split.CALIBRATION, self.shop.base, self.settings.reward))
            report = measure(live, found, cache=made.cache, fit=False)
            live.close()
        return report.outcomes

    # 3. policy -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _policy(self, made: _Made, work: Path) -> Iterator[ReleaseKey]:
        self._begin(3, "policy")
        shop, settings = self.shop, self.settings
        base = shop.base
        if self.state.live:
            made.live = shop.registry.fetch(self.channel, self.state.live, work / "live", base_digest=base.digest)
        assert made.reward is not None, "the reward model is fitted in step 2"
        train, held_out = hold_out(made.train, settings.policy)
        task = PolicyTask(
            channel=self.channel,
            engine=shop.engine,
            base=base,
            live=made.live / "policy" if made.live is not None else None,
            data=made.data,
            references=made.references,
            train=train,
            held_out=held_out,
            reward=ModelReward(
                made.reward,
                self.plugin,
                made.references,
                most_references=settings.reward.references,
                outlook=settings.policy.advantage == "gae",
            ),
            sampling=self.sampling,
            model=settings.model,
            settings=settings.policy,
            seed=self.seed,
            folder=work,
            progress=shop.status.detail,
        )
        made.optimised = Ppo().optimise(task)
        adapters.load(base, "policy", made.optimised.adapter)
        key = ReleaseKey(str(self.channel), UNREGISTERED, f"candidate-{self.seed}")
        shop.engine.stage(key, made.optimised.adapter, temperature=self.sampling.temperature)
        try:
            yield key
        finally:
            shop.engine.unstage(key)
            adapters.remove(base, "policy")

    # 4. measure ----------------------------------------------------------------------------------

    def _measure(self, made: _Made, key: ReleaseKey, work: Path) -> gate.GateMeasurements:
        self._begin(4, "measure")
        shop, settings = self.shop, self.settings
        assert made.judge is not None
        assert made.report is not None
        measurer = Measurer(
            shop.base,
            shop.engine,
            self.plugin,
            made.judge,
            made.references,
            self.sampling,
            samples=settings.gate.samples,
            start_layer=self.start_layer,
            seed=self.seed * 7919 + 1,
            detail=shop.status.detail,
        )
        made.candidate = measurer.sampled(made.gate, key, "candidate")
        made.references.complete(made.gate, min(2, settings.gate.samples), seed=self.seed * 17 + 3)
        scores, said = measurer.judged(made.candidate)
        base_scores, base_said = measurer.base_answers(made.gate)
        rollout = collate(made.candidate, shop.base, self.start_layer)
        temperature = settings.policy.temperature
        kl_base = kl_by_prompt(
            rollout, logprobs_of(shop.base, rollout, None, self.start_layer, temperature), settings.gate.samples
        )
        wins_base = measurer.wins(scores, base_scores)
        wins_live, kl_live = wins_base, kl_base
        if made.live is not None:
            wins_live, kl_live = self._against_live(measurer, made, scores, made.live / "policy")
        made.manifest_parts["probes"] = measurer.proof(made.candidate, "policy", temperature)
        made.manifest_parts["kl"] = sum(kl_base) / len(kl_base)
        adapters.save(shop.base, "policy", work / "release" / "policy")
        shop.metrics.policy_kl.labels(str(self.channel)).set(made.manifest_parts["kl"])
        return gate.GateMeasurements(
            wins_base=wins_base,
            wins_live=wins_live,
            kl_base=kl_base,
            kl_live=kl_live,
            candidate=tuple(said),
            base=tuple(base_said),
            probes=measurer.probes(key),
            comparisons=tuple(made.report.outcomes),
            live_comparisons=made.live_outcomes,
        )

    def _against_live(
        self, measurer: Measurer, made: _Made, scores: list[list[float]], adapter: Path
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Win-rates and KL by prompt against the live release."""
        shop = self.shop
        live = shop.registry.release(self.channel, self.state.live)
        key = ReleaseKey(str(self.channel), live.version, live.digest)
        temperature = shop.registry.manifest(self.channel, live.version).temperature
        shop.engine.stage(key, adapter, temperature=temperature)
        live_scores, _ = measurer.judged(measurer.sampled(made.gate, key, "live"))
        shop.engine.unstage(key)
        adapters.load(shop.base, "live", adapter)
        rollout = collate(made.candidate, shop.base, self.start_layer)
        other = logprobs_of(shop.base, rollout, "live", self.start_layer, self.settings.policy.temperature)
        adapters.remove(shop.base, "live")
        return measurer.wins(scores, live_scores), kl_by_prompt(rollout, other, self.settings.gate.samples)

    # 5. register ---------------------------------------------------------------------------------

    def _register(self, made: _Made, work: Path) -> ReleaseRow:
        self._begin(5, "register")
        folder, settings, base = work / "release", self.settings, self.shop.base
        assert made.reward is not None
        assert made.judge is not None
        assert made.report is not None
        assert made.optimised is not None
        made.reward.save(folder / "reward")
        made.judge.save(folder / "gate_reward")
        (folder / "reward_report.json").write_text(made.report.to_json())
        declaration = self.plugin.declaration
        manifest = Manifest(
            channel=self.channel,
            parent=self.state.live,
            base_digest=base.digest,
            temperature=settings.policy.temperature,
            adapter=Adapter(
                digest=file_digest(folder / ADAPTER_WEIGHTS),
                rank=settings.model.adapter_rank,
                alpha=settings.model.adapter_alpha,
                layers=settings.model.adapter_layers,
            ),
            reward_model=folder_digest(list_artifacts(folder), "reward"),
            as_of=made.data.as_of,
            offsets=tuple(
                Offsets(topic=str(o.topic), partition=o.partition, first=o.first, next=o.next)
                for o in made.data.offsets
            ),
            evidence_digest=made.data.digest,
            evidence_counts=made.data.counts,
            settings={
                name: getattr(settings, name).model_dump(mode="json") for name in ("model", "reward", "policy", "gate")
            }
            | {"iterations": [_finite(stats) for stats in made.optimised.statistics]},
            seeds={"turn": self.seed},
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "plaudit": plaudit.__version__,
                f"plugin:{declaration.name}": declaration.version,
            },
            **made.manifest_parts,
        )
        return self.shop.registry.register(manifest, folder)

    # 6. decide -----------------------------------------------------------------------------------

    def _decide(self, made: _Made, row: ReleaseRow, measurements: gate.GateMeasurements) -> gate.Decision:
        self._begin(6, "decide")
        decision = gate.decide(measurements, self.settings.gate, seed=self.seed)
        self.shop.registry.decide(self.channel, row.version, decision)
        for check in decision.checks:
            if math.isfinite(check.value):
                self.shop.metrics.gate_check.labels(str(self.channel), check.name).set(check.value)
        self.shop.metrics.gate_decisions.labels(str(self.channel), str(decision.accepted).lower()).inc()
        log.info(
            "gate",
            version=row.version,
            accepted=decision.accepted,
            failed=[check.name for check in decision.checks if not check.passed],
        )
        return decision


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def promote(shop: Workshop, channel: Channel, version: int) -> None:
    """Step 7: make a gated release live and tell the replicas."""
    fail_point("learn.7")
    shop.status.step(7, "promote")
    reason = "the gate accepted it"
    change = shop.registry.change(channel, Promote(version), expected_generation=None, actor=ACTOR, reason=reason)
    publish.publish(shop.log, change, actor=ACTOR, reason=reason, producer=PRODUCER)
    manifest = shop.registry.manifest(channel, version)
    if manifest.as_of is not None:
        age = (dt.datetime.now(dt.UTC) - manifest.as_of).total_seconds()
        shop.metrics.freshness_seconds.labels(str(channel)).observe(age)


def recover(shop: Workshop, channel: Channel) -> None:
    """End what a turn left that died: a release without a decision is rejected, a gated one is promoted."""
    for row in shop.registry.releases(channel):
        if row.state is ReleaseState.TRAINED and row.version:
            check = gate.Check("interrupted", False, 0.0, 0.0, note="the turn ended before its decision")
            shop.registry.decide(channel, row.version, gate.Decision(False, (check,), dt.datetime.now(dt.UTC)))
            log.warning("rejected what an interrupted turn left", version=row.version)
    state = shop.registry.state(channel)
    newest = shop.registry.releases(channel)[-1]
    if newest.state is ReleaseState.GATED and shop.settings.learn.promote and state and not state.pinned:
        log.warning("promoting what an interrupted turn left", version=newest.version)
        promote(shop, channel, newest.version)
