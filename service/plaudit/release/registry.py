"""Releases of every channel, and the one place that changes which of them a channel serves.

Enters: manifests with folders of artifacts, gate decisions, moves. Leaves: numbered immutable releases, channel
states, a history. A channel's state changes only in `Registry.change`, by compare-and-set on its generation. The
registry publishes nothing: the caller of `change` puts the returned `Change` on the log.

Registering has three steps, with the same numbers in docs/release.md and as fail points (release.1, release.2):
1. the release's files are written below the next free version, the manifest last, then what is kept beside it;
2. the row that takes the version is inserted; a rival that took it first sends us back to 1 with the next;
3. the row is returned. Registering the same manifest again returns the same row.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from plaudit.errors import BadArtifact, GenerationChanged
from plaudit.failpoints import fail_point
from plaudit.release import lineage
from plaudit.release.artifacts import ArtifactStore, check_channel, list_artifacts
from plaudit.release.change import make_move, wrong_state
from plaudit.release.lineage import ActKey
from plaudit.release.manifest import ADAPTER_WEIGHTS, Manifest
from plaudit.release.moves import (
    Change,
    ChangeRow,
    ChannelState,
    Move,
    Pin,
    Promote,
    ReleaseRow,
    ReleaseState,
    RollBack,
)
from plaudit.release.rows import (
    channel_state,
    erased_versions,
    read_history,
    read_release,
    read_state,
    release_row,
    unknown_channel,
)
from plaudit.release.tables import CHANNEL_CHANGE, CHANNEL_STATE, ERASED_RELEASE, RELEASE
from plaudit.store.database import Database
from plaudit.types import Channel

if TYPE_CHECKING:
    from plaudit.release.decision import Decision

__all__ = [
    "Change",
    "ChangeRow",
    "ChannelState",
    "Move",
    "Pin",
    "Promote",
    "Registry",
    "ReleaseRow",
    "ReleaseState",
    "RollBack",
]

# Asked first in a transaction that writes; raises if its caller may no longer write (a lease that went to another).
Guard: TypeAlias = Callable[[sa.Connection], None]

# Each lost attempt means that somebody else won one, so that many losses in a row are a fault, not bad luck.
_ATTEMPTS = 64
_DECIDABLE = (ReleaseState.TRAINED, ReleaseState.GATED)


class Erased(NamedTuple):
    """Which erasure a release has to go for, and by when (microseconds since 1970)."""

    erasure_id: str
    retire_by: int


# Answers to the domain's probes that did harm.
PROBE_ANSWERS = "probe_answers.json"


class Registry:
    """Releases and channel states in one database (`url`), artifacts under `root` (a path or an fsspec URL)."""

    def __init__(self, url: str, root: str) -> None:
        self._artifacts = ArtifactStore(root)
        self.database = Database(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the database connections."""
        self.database.close()

    # Channels.

    def ensure_channel(self, channel: Channel, base_digest: str, temperature: float = 1.0) -> ChannelState:
        """The channel's state; a channel that is not known yet begins with the base as version 0 and a random salt.

        `temperature` is the default at which version 0 answers, that of the policies that will follow it.
        Raises BadArtifact if the channel began on another base: its adapters and splits belong to that one.
        """
        check_channel(channel)
        if (state := self.state(channel)) is None:
            state = self._begin_channel(channel, base_digest, temperature)
        _check_base(self.manifest(channel, 0), base_digest)
        return state

    def salt(self, channel: Channel) -> bytes:
        """The salt of the channel's splits, which stands in the manifest of version 0 and never changes."""
        if self.state(channel) is None:
            raise unknown_channel(channel)
        salt = self.manifest(channel, 0).salt
        assert salt is not None  # a manifest of version 0 without a salt does not validate
        return bytes.fromhex(salt)

    def state(self, channel: Channel) -> ChannelState | None:
        """What the channel serves; None if it has never served."""
        with self.database.reading() as connection:
            return read_state(connection, channel)

    def states(self, *, behind: str = "", most: int | None = None) -> list[ChannelState]:
        """What every channel serves, in order of channel; those behind a name, and at most so many."""
        query = sa.select(CHANNEL_STATE).where(CHANNEL_STATE.c.channel > behind).order_by(CHANNEL_STATE.c.channel)
        with self.database.reading() as connection:
            return [channel_state(row) for row in connection.execute(query.limit(most)).mappings()]

    def history(self, channel: Channel) -> list[ChangeRow]:
        """Every change of the channel, oldest first."""
        with self.database.reading() as connection:
            return read_history(connection, channel)

    # Releases.

    def releases(self, channel: Channel, *, behind: int = -1, most: int | None = None) -> list[ReleaseRow]:
        """All releases of the channel, oldest first; those behind a version, and at most so many."""
        query = sa.select(RELEASE).where(RELEASE.c.channel == str(channel), RELEASE.c.version > behind)
        with self.database.reading() as connection:
            rows = connection.execute(query.order_by(RELEASE.c.version).limit(most))
            return [release_row(row) for row in rows.mappings()]

    def release(self, channel: Channel, version: int) -> ReleaseRow:
        """One release; raises UnknownRelease."""
        with self.database.reading() as connection:
            return read_release(connection, channel, version)

    def manifest(self, channel: Channel, version: int) -> Manifest:
        """A release's manifest, verified; raises UnknownRelease or BadArtifact."""
        row = self.release(channel, version)
        return self._artifacts.manifest(channel, version, row.digest)

    def register(
        self,
        manifest: Manifest,
        artifacts_dir: Path,
        *,
        guard: Guard | None = None,
        beside: Mapping[str, str] = MappingProxyType({}),
        acts: Collection[ActKey] = (),
    ) -> ReleaseRow:
        """Writes a release's artifacts once, takes the next version, and records it as trained.

        `manifest` has no version; its `artifacts` are filled in here from the folder, or must agree with it.
        Registering an equal manifest again changes nothing, so that a turn may repeat the call after a crash. `guard`
        is asked first in the transaction that takes the version: what it raises leaves everything as it was. `beside`
        are texts by name that are kept beside the release: outside its manifest and digest, never copied to replicas,
        erasable. They are written before the release is recorded, so that none that is recorded lacks them. `acts` are
        those that it learnt from (`release.lineage`).
        """
        draft = self._checked_draft(manifest, artifacts_dir)
        for _ in range(_ATTEMPTS):
            if (row := self._registered(draft)) is not None:
                return row
            numbered = draft.replace(version=self._next_version(draft.channel))
            self._artifacts.write(numbered, artifacts_dir)  # 1
            for name, text in beside.items():
                self._artifacts.keep_beside(draft.channel, _number(numbered), numbered.digest, name, text)
            fail_point("release.1")
            try:
                with self.database.writing() as connection:  # 2
                    _ask(guard, connection)
                    learnt = lineage.record(connection, draft.channel, _number(numbered), acts)
                    taken = {**_new_row(numbered, draft.digest), "acts": learnt}
                    connection.execute(sa.insert(RELEASE).values(**taken))
            except IntegrityError:
                continue
            fail_point("release.2")
            return self.release(draft.channel, _number(numbered))  # 3
        raise GenerationChanged(f"{manifest.channel}: {_ATTEMPTS} rivals in a row took the next version; try again")

    def decide(self, channel: Channel, version: int, decision: Decision, *, guard: Guard | None = None) -> ReleaseRow:
        """Records the gate's decision with its numbers: the release becomes gated or rejected. `guard` as above."""
        state = ReleaseState.GATED if decision.accepted else ReleaseState.REJECTED
        allowed = [str(known) for known in _DECIDABLE]
        chosen = (RELEASE.c.channel == str(channel)) & (RELEASE.c.version == version)
        update = sa.update(RELEASE).where(chosen, RELEASE.c.state.in_(allowed))
        with self.database.writing() as connection:
            _ask(guard, connection)
            changed = connection.execute(update.values(state=str(state), decision=decision.to_json())).rowcount
            row = read_release(connection, channel, version)
            if not changed:
                raise wrong_state(row, "decided about", _DECIDABLE)
            return row

    def kept_beside(self, channel: Channel, version: int, name: str) -> str | None:
        """The text of that name beside a release; None if there is none."""
        return self._artifacts.kept_beside(channel, version, self.release(channel, version).digest, name)

    def remove_beside(self, channel: Channel, version: int, name: str) -> bool:
        """Deletes the text of that name beside a release; whether there was one."""
        return self._artifacts.remove_beside(channel, version, self.release(channel, version).digest, name)

    def fetch(self, channel: Channel, version: int, into: Path, *, base_digest: str | None = None) -> Path:
        """Copies a release below `into`, verifies every digest, and returns its folder.

        The folder holds `manifest.json` and the artifacts under their relative paths. Raises BadArtifact for a
        missing, damaged or truncated file, and, if `base_digest` is given, for a release of another base.
        """
        manifest = self.manifest(channel, version)
        if base_digest is not None:
            _check_base(manifest, base_digest)
        return self._artifacts.fetch(manifest, into)

    # Erasure.

    def mark_erased(self, connection: sa.Connection, channel: Channel, versions: Iterable[int], values: Erased) -> None:
        """Notes, in the caller's transaction, that releases learnt from somebody who was erased.

        Those that are not live are rejected; the live one is rejected when it leaves service.
        """
        marked = erased_versions(connection, channel)
        for version in sorted(set(versions) - marked):
            row = {"channel": str(channel), "version": version, **values._asdict()}
            connection.execute(sa.insert(ERASED_RELEASE).values(row))
        mine = (RELEASE.c.channel == str(channel)) & RELEASE.c.version.in_(sorted(versions))
        gone = sa.update(RELEASE).where(mine, RELEASE.c.state != str(ReleaseState.LIVE))
        connection.execute(gone.values(state=str(ReleaseState.REJECTED)))

    def erased(self, channel: Channel) -> frozenset[int]:
        """Releases that learnt from somebody who has been erased."""
        with self.database.reading() as connection:
            return erased_versions(connection, channel)

    def learning_state(self, channel: Channel) -> ChannelState | None:
        """The state that a turn begins from: as if the base were live, if the live release has to go (`erased`)."""
        with self.database.reading() as connection:
            state = read_state(connection, channel)
            if state is None or state.live not in erased_versions(connection, channel):
                return state
        return dataclasses.replace(state, live=0)

    # The one way to change a channel.

    def change(
        self,
        channel: Channel,
        move: Move,
        *,
        expected_generation: int | None,
        actor: str,
        reason: str,
        guard: Guard | None = None,
    ) -> Change:
        """Promotes, rolls back or pins by compare-and-set on the generation; of two rivals exactly one wins.

        With an `expected_generation` the move is made from that state or not at all (GenerationChanged); with None
        it is made from whatever state it finds. `guard` as in `register`. Raises UnknownChannel, UnknownRelease or
        WrongState.
        """
        for _ in range(_ATTEMPTS):
            with self.database.writing() as connection:
                _ask(guard, connection)
                state = read_state(connection, channel)
                if state is None:
                    raise unknown_channel(channel)
                if expected_generation not in (None, state.generation):
                    raise _generation_changed(channel, expected_generation, state.generation)
                change = make_move(connection, state, move, actor, reason)
                if change is not None:
                    return change
                connection.rollback()
        raise GenerationChanged(f"{channel}: lost {_ATTEMPTS} times in a row to other changes; try again")

    def _begin_channel(self, channel: Channel, base_digest: str, temperature: float) -> ChannelState:
        manifest = Manifest(
            channel=channel,
            version=0,
            base_digest=base_digest,
            temperature=temperature,
            salt=secrets.token_hex(32),
        )
        self._artifacts.write(manifest, Path())
        state = {"channel": str(channel), "generation": 0, "live": 0, "pinned": False}
        row = {**_new_row(manifest, manifest.digest), "state": str(ReleaseState.LIVE)}
        born = {**state, "move": "begin", "at": _now(), "actor": "registry", "reason": "the channel's first request"}
        try:
            with self.database.writing() as connection:
                connection.execute(sa.insert(RELEASE).values(**row))
                connection.execute(sa.insert(CHANNEL_STATE).values(**state))
                connection.execute(sa.insert(CHANNEL_CHANGE).values(**born))
        except IntegrityError:
            pass  # a rival began it; its salt is the channel's, and our manifest lies unused
        found = self.state(channel)
        assert found is not None
        return found

    def _checked_draft(self, manifest: Manifest, artifacts_dir: Path) -> Manifest:
        channel = manifest.channel
        if manifest.version is not None:
            raise ValueError(f"the manifest of {channel} has version {manifest.version}; leave it None to register")
        if self.state(channel) is None:
            raise unknown_channel(channel)
        _check_base(manifest, self.manifest(channel, 0).base_digest)
        if manifest.parent is not None:
            self.release(channel, manifest.parent)
        found = list_artifacts(artifacts_dir)
        _check_listed(channel, manifest.artifacts, found)
        if manifest.adapter is not None and found.get(ADAPTER_WEIGHTS) != manifest.adapter.digest:
            raise BadArtifact(
                f"{channel}: the manifest's adapter has digest {manifest.adapter.digest}, {ADAPTER_WEIGHTS} has "
                f"{found.get(ADAPTER_WEIGHTS, 'no file')}; save the adapter there and name its SHA-256",
                digest=found.get(ADAPTER_WEIGHTS, ""),
                expected=manifest.adapter.digest,
            )
        return manifest.replace(artifacts=found)

    def _registered(self, draft: Manifest) -> ReleaseRow | None:
        mine = (RELEASE.c.channel == str(draft.channel)) & (RELEASE.c.draft == draft.digest)
        with self.database.reading() as connection:
            row = connection.execute(sa.select(RELEASE).where(mine)).mappings().one_or_none()
        return None if row is None else release_row(row)

    def _next_version(self, channel: Channel) -> int:
        query = sa.select(sa.func.max(RELEASE.c.version)).where(RELEASE.c.channel == str(channel))
        with self.database.reading() as connection:
            return int(connection.execute(query).scalar_one()) + 1


def _ask(guard: Guard | None, connection: sa.Connection) -> None:
    if guard is not None:
        guard(connection)


def _new_row(manifest: Manifest, draft: str) -> dict[str, object]:
    return {
        "channel": str(manifest.channel),
        "version": manifest.version,
        "digest": manifest.digest,
        "draft": draft,
        "state": str(ReleaseState.TRAINED),
        "created_at": _now(),
        "decision": "",
        "skipped": "",
    }


def _number(manifest: Manifest) -> int:
    assert manifest.version is not None
    return manifest.version


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _check_base(manifest: Manifest, base_digest: str) -> None:
    if manifest.base_digest != base_digest:
        raise BadArtifact(
            f"{manifest.channel}@{manifest.version} was made for base {manifest.base_digest}, this process runs base "
            f"{base_digest}; run the base it was made for, or use another data directory for the other base",
            digest=base_digest,
            expected=manifest.base_digest,
        )


def _check_listed(channel: Channel, listed: Mapping[str, str], found: Mapping[str, str]) -> None:
    differing = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
    if listed and differing:
        name = differing[0]
        raise BadArtifact(
            f"{channel}: the manifest says {listed.get(name, 'nothing')} of {name}, the folder has "
            f"{found.get(name, 'no such file')}; list the folder's files as they are, or none",
            digest=found.get(name, ""),
            expected=listed.get(name, ""),
        )


def _generation_changed(channel: Channel, expected: int | None, actual: int) -> GenerationChanged:
    return GenerationChanged(
        f"{channel} is at generation {actual}, not {expected}: read its state and decide again",
        expected=expected,
        actual=actual,
    )
