"""One turn: evidence in, a decided release out.

Steps (the same numbers in the code, in docs/learner.md and as fail points `learn.1` ...):

1. freeze    evidence, its offsets and digest, in one read
2. reward    fit the reward model (train raters, train groups) and the gate's own (gate raters); ask whether the
             first may steer anything (calibration raters)
3. policy    the optimiser makes a candidate from the live adapter, on prompts of train groups
4. measure   answers to gate groups against base and live, KL, texts, probes, the proof's log-probs
5. register  artifacts and manifest, once; the version is taken
6. decide    the gate's decision, recorded with its numbers
7. promote   compare-and-set on the generation that the turn began with, then the event

Nothing before step 5 leaves a trace, so a turn that dies there begins again. `recover` ends what a later death left.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from plaudit.engine import adapters
from plaudit.engine.protocol import ReleaseKey
from plaudit.learner.context import Learner, Turn, base_seed
from plaudit.learner.kept import Kept
from plaudit.learner.outcome import REFUSALS, Result, TurnEnded, TurnOutcome
from plaudit.learner.since import settings_digest
from plaudit.learner.steps.decide import decide
from plaudit.learner.steps.fit import fit
from plaudit.learner.steps.freeze import freeze
from plaudit.learner.steps.measure import measure
from plaudit.learner.steps.optimise import optimise
from plaudit.learner.steps.promote import promote
from plaudit.learner.steps.register import register
from plaudit.privacy.models import erasures_of
from plaudit.release.moves import ChannelState
from plaudit.release.reading import failed_checks, refusals
from plaudit.store.kept import Files
from plaudit.store.leases import Lease
from plaudit.types import Channel


@contextlib.contextmanager
def new_turn(
    learner: Learner,
    channel: Channel,
    seed: int,
    lease: Lease,
    as_of: dt.datetime | None = None,
    state: ChannelState | None = None,
) -> Iterator[Turn]:
    """A turn from what the channel serves now, or from another `state`; `as_of` is the present if it is not given.

    Whatever the turn leaves on the base, in the engine or on disk is taken away at the end, so that a turn that broke
    anywhere is no burden to the next one, of any channel.
    """
    state = state or learner.registry.learning_state(channel)
    if state is None:
        raise ValueError(f"{channel} has no state: a channel begins with its first request")
    plugin, settings = learner.plugins[channel.domain], learner.settings.for_channel(channel)
    with learner.store.database.reading() as connection:
        erasures = erasures_of(connection, channel)
    staged = set(learner.engine.staged())
    folder = Path(tempfile.mkdtemp(prefix="plaudit-turn-"))
    files = Files(
        Path(learner.settings.data_dir),
        channel,
        erasures=erasures,
        most_bytes=settings.learn.kept_mb << 20,
        count=lambda kind, found, number: learner.metrics.kept.labels(str(channel), kind, found).inc(number),
    )
    version_0 = ReleaseKey(str(channel), 0, learner.registry.release(channel, 0).digest)
    kept = Kept(files, base=learner.base, engine=learner.engine, release=version_0, seed=base_seed(seed))
    try:
        yield Turn(
            learner=learner,
            channel=channel,
            plugin=plugin,
            settings=settings,
            state=state,
            digest=settings_digest(settings, plugin.declaration, learner.registry, state),
            lease=lease,
            seed=seed,
            as_of=as_of or dt.datetime.now(dt.UTC),
            folder=folder,
            erasures=erasures,
            kept=kept,
        )
    finally:
        kept.answers.keep()
        learner.status.end_step()
        shutil.rmtree(folder, ignore_errors=True)
        for key in set(learner.engine.staged()) - staged:
            learner.engine.unstage(key)
        for name in adapters.names(learner.base):
            adapters.remove(learner.base, name)


def run(turn: Turn) -> Result:
    """Run the steps; raises what broke one of them, and then nothing is promoted."""
    evidence = ""
    try:
        turn.engine.stage(turn.base_key, None, temperature=turn.sampling.temperature)
        frozen = freeze(turn)
        evidence = frozen.data.digest
        before = turn.learner.outcomes.find(turn.channel, evidence, turn.digest)
        if before is not None and before.outcome in REFUSALS:
            return Result(
                outcome=TurnOutcome.WAITED, reason=f"nothing new since it was {before.outcome}: {before.reason}"
            )
        with contextlib.closing(fit(turn, frozen)) as fitted:
            optimised = optimise(turn, frozen, fitted)
            measured = measure(turn, frozen, fitted, optimised)
            release = register(turn, frozen, fitted, optimised, measured)
        decision = decide(turn, fitted, measured, release)
    except TurnEnded as end:
        return Result(
            outcome=end.outcome,
            reason=end.reason,
            needs=end.needs,
            evidence=evidence,
            as_of=turn.as_of,
            refusals=end.refusals,
        )
    if not decision.accepted:
        outcome, reason = (
            TurnOutcome.REJECTED,
            f"the gate refused version {release.version}: {failed_checks(decision.checks)}",
        )
    elif turn.state.pinned or not turn.settings.learn.promote:
        why = "the channel is pinned" if turn.state.pinned else "learn.promote is off"
        outcome, reason = TurnOutcome.GATED, f"{why}: promote version {release.version} by hand"
    else:
        outcome, reason = promote(turn.learner, turn.channel, release.version, turn.state.generation, turn.lease)
    return Result(
        outcome=outcome,
        reason=reason,
        version=release.version,
        evidence=evidence,
        as_of=turn.as_of,
        refusals=refusals(decision.checks),
    )
