"""Retrains a release from its manifest, and says whether the same adapter comes out, and if not, what differs.

Enters: a release's manifest and the log that it names. Leaves: two digests and differences in words; nothing is
registered, decided or promoted, and no file of the deployment changes. On the same machine and versions the adapter is
the same, bit by bit, for as long as the log holds the records that the manifest covers.

Steps: 1 compare versions and base; 2 make the evidence anew from the log, in a store of its own; 3 compare its digest;
4 fit the reward model; 5 optimise the policy; 6 compare what came out.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.domain import Declaration
from plaudit.engine import adapter_files
from plaudit.errors import WrongState
from plaudit.eventlog import Topic
from plaudit.evidence.rebuild import IDLE_SECONDS, Read, read_log, scratch_store
from plaudit.evidence.store import EvidenceStore, FrozenDataSet, OffsetRange
from plaudit.learner.context import Learner
from plaudit.learner.loop import open_learner
from plaudit.learner.outcome import TurnEnded
from plaudit.learner.since import SECTIONS
from plaudit.learner.status import Status
from plaudit.learner.steps.fit import fit
from plaudit.learner.steps.freeze import freeze
from plaudit.learner.steps.optimise import optimise
from plaudit.learner.steps.register import versions
from plaudit.learner.turn import new_turn
from plaudit.privacy.forgotten import Forgotten
from plaudit.release.artifacts import file_digest, list_artifacts
from plaudit.release.manifest import Manifest, folder_digest
from plaudit.release.moves import ChannelState
from plaudit.release.registry import Registry
from plaudit.settings import EngineSettings, Settings
from plaudit.store.leases import Leases
from plaudit.store.outcomes import TurnOutcomes
from plaudit.types import Channel

# Where the model lies and runs is this machine's business; that it is the same model, its digest tells.
_OF_THE_MACHINE = ("path", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay came to. `found` is None if there was nothing to train from, or training ended before its end.

    `differences`: in words, what is not as it was; with the same adapter they made no difference to it.
    """

    channel: str
    version: int
    adapter: str
    found: str | None
    reward_model: str | None
    reward_found: str | None
    evidence: str | None
    evidence_found: str | None
    differences: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether the adapter is the same, byte by byte."""
        return self.found == self.adapter

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"same": self.same, **dataclasses.asdict(self)}


def replay(
    settings: Settings,
    channel: Channel,
    version: int,
    *,
    idle_seconds: float = IDLE_SECONDS,
    progress: Callable[[str], None] = lambda text: None,
) -> Replayed:
    """Retrain a release; raises UnknownRelease, BadArtifact, or WrongState for one that no turn made."""
    with Registry(settings.store_url, settings.registry_root) as registry:
        manifest = registry.manifest(channel, version)
        parent = None if manifest.parent is None else registry.manifest(channel, manifest.parent)
        erased = version in registry.erased(channel)
    if manifest.adapter is None or parent is None or "turn" not in manifest.seeds or manifest.as_of is None:
        raise WrongState(f"{channel}@{version} was made by no turn of a learner: there is nothing to replay")
    wanted, rollouts = of_manifest(settings.for_channel(channel), manifest)
    with contextlib.ExitStack() as stack:
        learner = open_learner(wanted, rollouts=rollouts)
        stack.callback(learner.close)
        declaration = learner.plugins[channel.domain].declaration
        differences = list(_differences(manifest, declaration, learner.base.digest, rollouts is None))
        if erased:
            differences.append("erasure: it may have learnt from somebody who was erased")
        progress("reading the log")
        scratch = stack.enter_context(scratch_store(learner.store.database))
        read = read_log(
            learner.log,
            scratch,
            learner.plugins,
            settings.join,
            tuple(
                OffsetRange(Topic(o.topic), o.partition, o.first, o.next, o.topic_id or "") for o in manifest.offsets
            ),
            forgotten=Forgotten(
                lambda each: settings.for_channel(each).privacy.retention_days, opens=settings.privacy.person_keys
            ),
            idle_seconds=idle_seconds,
            progress=lambda records: progress(f"{records} records read"),
        )
        differences += [str(gap) for gap in read.gaps]
        state = ChannelState(channel, manifest.generation or 0, manifest.parent or 0, None, True)
        return _retrained(_beside(learner, scratch), state, manifest, read, differences, progress)


def of_manifest(settings: Settings, manifest: Manifest) -> tuple[Settings, EngineSettings | None]:
    """The settings that a release was trained under, and its engine's (None of releases that did not keep them)."""
    changes = {}
    for name in SECTIONS:
        section = getattr(settings, name)
        kept = {**dict(section), **_table(manifest.settings.get(name))}
        if name == "model":
            kept |= {each: getattr(section, each) for each in _OF_THE_MACHINE}
        changes[name] = type(section).model_validate(kept)
    engine = _table(manifest.settings.get("engine"))
    return settings.model_copy(update=changes), EngineSettings.model_validate(engine) if engine else None


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _differences(manifest: Manifest, declaration: Declaration, base: str, no_engine: bool) -> list[str]:
    """Step 1: versions and base that are not those of then."""
    here, then = versions(declaration), manifest.versions
    found = [
        f"{name}: trained with {then[name] or 'none'}, here is {here.get(name) or 'none'}"
        for name in sorted(then)
        if then[name] != here.get(name, "")
    ]
    if base != manifest.base_digest:
        found.append(f"base: trained on {manifest.base_digest[:12]}, here is {base[:12]}")
    if no_engine:
        found.append("engine: the release did not keep the widths that it was sampled with")
    return found


def _beside(learner: Learner, scratch: EvidenceStore) -> Learner:
    """The learner over another store of evidence; what it would remember, or keep for a next turn, is gone with that.

    It takes over nothing that was kept either: what comes out is computed from the log alone.
    """
    assert scratch.database.engine.url.database is not None, "a scratch store is a file"
    folder = Path(scratch.database.engine.url.database).parent
    return dataclasses.replace(
        learner,
        settings=learner.settings.model_copy(update={"data_dir": folder}),
        store=scratch,
        outcomes=TurnOutcomes(scratch.database),
        leases=Leases(scratch.database),
        status=Status(folder / "learner.json", learner.metrics),
    )


def _retrained(
    learner: Learner,
    state: ChannelState,
    manifest: Manifest,
    read: Read,
    differences: list[str],
    progress: Callable[[str], None],
) -> Replayed:
    """Steps 3 to 6."""
    assert manifest.adapter is not None, "asked of releases with an adapter"
    found = reward_found = evidence_found = None
    with (
        learner.leases.take("replay") as lease,
        new_turn(learner, state.channel, manifest.seeds["turn"], lease, manifest.as_of, state) as turn,
    ):
        turn.engine.stage(turn.base_key, None, temperature=turn.sampling.temperature)
        try:
            progress("evidence")
            frozen = freeze(turn)
            evidence_found = frozen.data.digest
            if evidence_found == manifest.evidence_digest:
                progress("reward model")
                with contextlib.closing(fit(turn, frozen)) as fitted:
                    fitted.reward.save(turn.folder / "saved" / "reward")
                    reward_found = folder_digest(list_artifacts(turn.folder / "saved"), "reward")
                    progress("policy")
                    found = file_digest(optimise(turn, frozen, fitted).adapter / adapter_files.WEIGHTS)
            else:
                differences.append(_evidence(manifest, frozen.data, read))
        except TurnEnded as end:
            differences.append(f"the turn ended as {end.outcome}: {end.reason}")
    if reward_found is not None and reward_found != manifest.reward_model:
        differences.append("the reward model came out otherwise, although its evidence is the same")
    return Replayed(
        channel=str(state.channel),
        version=manifest.version or 0,
        adapter=manifest.adapter.digest,
        found=found,
        reward_model=manifest.reward_model,
        reward_found=reward_found,
        evidence=manifest.evidence_digest,
        evidence_found=evidence_found,
        differences=tuple(differences),
    )


def _evidence(manifest: Manifest, data: FrozenDataSet, read: Read) -> str:
    then, now = manifest.evidence_counts, data.counts
    kinds = [f"{now.get(kind, 0)} of {then.get(kind, 0)} {kind}" for kind in sorted(then.keys() | now.keys())]
    why = "its records are not all there" if read.gaps else "erased since, or made otherwise by another plugin"
    return f"evidence: the log gives {', '.join(kinds) or 'nothing'} ({why}); nothing was trained"
