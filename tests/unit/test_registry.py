"""The registry: versions, artifacts, and the one way to change a channel."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from plaudit.errors import (
    BadArtifact,
    GenerationChanged,
    InvalidField,
    StoreUnavailable,
    UnknownChannel,
    UnknownRelease,
    WrongState,
)
from plaudit.release.artifacts import list_artifacts
from plaudit.release.change import make_move
from plaudit.release.decision import Check, Decision
from plaudit.release.manifest import Adapter, Manifest
from plaudit.release.registry import PROBE_ANSWERS, Pin, Promote, Registry, ReleaseRow, ReleaseState, RollBack
from plaudit.store.leases import LeaseLost, Leases
from plaudit.types import Channel

CHANNEL = Channel("instruction", "acme")
BASE = "b" * 64
WEIGHTS = b"not really weights"
YES = Decision(True, (Check("win_base", True, 0.6, 0.5, 0.55, 0.65),), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
NO = Decision(False, (Check("win_base", False, 0.5, 0.5, 0.45, 0.55),), dt.datetime(2026, 1, 1, tzinfo=dt.UTC))


def open_registry(tmp_path: Path) -> Registry:
    return Registry((tmp_path / "url").read_text(), str(tmp_path / "registry"))


@pytest.fixture
def registry(tmp_path: Path, store_url: str) -> Iterator[Registry]:
    (tmp_path / "url").write_text(store_url)  # for other processes, too
    with open_registry(tmp_path) as found:
        found.ensure_channel(CHANNEL, BASE)
        yield found


def artifacts(tmp_path: Path, weights: bytes = WEIGHTS) -> Path:
    folder = tmp_path / "trained"
    (folder / "policy").mkdir(parents=True, exist_ok=True)
    (folder / "policy" / "adapter_model.safetensors").write_bytes(weights)
    (folder / "policy" / "adapter_config.json").write_text("{}")
    return folder


def draft(weights: bytes = WEIGHTS, **fields: object) -> Manifest:
    adapter = Adapter(digest=hashlib.sha256(weights).hexdigest(), rank=8, alpha=16, layers=10)
    return Manifest(channel=CHANNEL, base_digest=BASE, adapter=adapter, temperature=0.7, parent=0, **fields)  # type: ignore[arg-type]


def gated(registry: Registry, tmp_path: Path) -> ReleaseRow:
    row = registry.register(draft(), artifacts(tmp_path))
    return registry.decide(CHANNEL, row.version, YES)


def promote(registry: Registry, version: int) -> None:
    registry.change(CHANNEL, Promote(version), expected_generation=None, actor="test", reason="a test")


def states(registry: Registry) -> list[str]:
    return [str(row.state) for row in registry.releases(CHANNEL)]


def test_a_channel_begins_with_the_base_live_and_a_salt_that_stays(registry: Registry) -> None:
    salt = registry.salt(CHANNEL)

    again = registry.ensure_channel(CHANNEL, BASE)

    assert (again.generation, again.live, again.canary, again.pinned) == (0, 0, None, False)
    assert states(registry) == ["live"]
    assert len(salt) == 32
    assert registry.salt(CHANNEL) == salt


def test_two_channels_have_different_salts(registry: Registry) -> None:
    other = Channel("instruction", "other")
    registry.ensure_channel(other, BASE)
    assert registry.salt(other) != registry.salt(CHANNEL)
    assert [state.channel for state in registry.states()] == [CHANNEL, other]


def test_a_channel_does_not_change_its_base(registry: Registry) -> None:
    with pytest.raises(BadArtifact, match=f"{BASE}.*{'c' * 64}"):
        registry.ensure_channel(CHANNEL, "c" * 64)


def test_versions_follow_each_other_and_a_refused_one_is_not_used_again(registry: Registry, tmp_path: Path) -> None:
    first = registry.register(draft(), artifacts(tmp_path))
    registry.decide(CHANNEL, first.version, NO)
    second = registry.register(draft(), artifacts(tmp_path))
    assert [first.version, second.version] == [1, 2]
    assert states(registry) == ["live", "rejected", "trained"]


def test_registering_the_same_manifest_again_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    manifest = draft()
    row = registry.register(manifest, artifacts(tmp_path))
    assert registry.register(manifest, artifacts(tmp_path)) == row
    assert len(registry.releases(CHANNEL)) == 2


def test_promotion_makes_the_release_live_and_retires_the_one_before(registry: Registry, tmp_path: Path) -> None:
    row = gated(registry, tmp_path)
    change = registry.change(CHANNEL, Promote(1), expected_generation=0, actor="learner", reason="won .61")
    assert (change.state.generation, change.state.live) == (1, 1)
    assert change.release.digest == row.digest
    assert change.release.skipped == (ReleaseState.SHADOW, ReleaseState.CANARY)
    assert states(registry) == ["retired", "live"]
    assert registry.state(CHANNEL) == change.state
    last = registry.history(CHANNEL)[-1]
    assert (last.generation, last.live, last.actor, last.reason, last.move) == (1, 1, "learner", "won .61", "promote 1")


@pytest.mark.parametrize("decision", [None, NO])
def test_only_a_gated_release_is_promoted(registry: Registry, tmp_path: Path, decision: Decision | None) -> None:
    row = registry.register(draft(), artifacts(tmp_path))
    if decision is not None:
        registry.decide(CHANNEL, row.version, decision)
    with pytest.raises(WrongState, match="gated or retired"):
        promote(registry, row.version)
    assert registry.state(CHANNEL).live == 0  # type: ignore[union-attr]
    assert len(registry.history(CHANNEL)) == 1


def test_a_release_is_decided_about_before_it_serves_and_not_after(registry: Registry, tmp_path: Path) -> None:
    gated(registry, tmp_path)
    promote(registry, 1)
    with pytest.raises(WrongState, match="is live"):
        registry.decide(CHANNEL, 1, NO)
    assert Decision.from_json(registry.release(CHANNEL, 1).decision_json) == YES


def test_rolling_back_goes_to_the_last_release_that_was_not_taken_back(registry: Registry, tmp_path: Path) -> None:
    for version in (1, 2):
        gated(registry, tmp_path)
        promote(registry, version)

    def roll_back() -> int:
        move = RollBack()
        return registry.change(CHANNEL, move, expected_generation=None, actor="ops", reason="bad").state.live

    assert roll_back() == 1
    assert states(registry) == ["retired", "live", "rolled_back"]
    assert roll_back() == 0
    assert states(registry) == ["live", "rolled_back", "rolled_back"]
    with pytest.raises(WrongState, match="nothing before version 0"):
        roll_back()


def test_rolling_back_to_a_named_release_needs_one_that_served_and_was_not_taken_back(
    registry: Registry, tmp_path: Path
) -> None:
    for version in (1, 2, 3):
        gated(registry, tmp_path)
        if version < 3:
            promote(registry, version)
    for version in (2, 3):
        with pytest.raises(WrongState):
            registry.change(CHANNEL, RollBack(version), expected_generation=None, actor="ops", reason="")
    change = registry.change(CHANNEL, RollBack(0), expected_generation=None, actor="ops", reason="")
    assert change.state.live == 0
    assert states(registry) == ["live", "retired", "rolled_back", "gated"]


def test_the_base_is_never_out_of_reach(registry: Registry, tmp_path: Path) -> None:
    gated(registry, tmp_path)
    for move in (Promote(1), Promote(0), RollBack()):
        registry.change(CHANNEL, move, expected_generation=None, actor="ops", reason="")
    assert states(registry) == ["retired", "live"]


def test_a_release_taken_back_is_not_promoted_again(registry: Registry, tmp_path: Path) -> None:
    gated(registry, tmp_path)
    promote(registry, 1)
    registry.change(CHANNEL, RollBack(), expected_generation=None, actor="ops", reason="")
    with pytest.raises(WrongState, match="rolled_back"):
        promote(registry, 1)


def test_a_pinned_channel_refuses_promotion_and_allows_going_back(registry: Registry, tmp_path: Path) -> None:
    gated(registry, tmp_path)
    promote(registry, 1)
    gated(registry, tmp_path)
    pinned = registry.change(CHANNEL, Pin(True), expected_generation=1, actor="ops", reason="audit")
    assert (pinned.state.pinned, pinned.state.live, pinned.state.generation) == (True, 1, 2)
    with pytest.raises(WrongState, match="unpin"):
        promote(registry, 2)
    back = registry.change(CHANNEL, RollBack(), expected_generation=None, actor="ops", reason="bad")
    assert (back.state.live, back.state.pinned) == (0, True)
    registry.change(CHANNEL, Pin(False), expected_generation=None, actor="ops", reason="")
    promote(registry, 2)
    assert registry.state(CHANNEL).live == 2  # type: ignore[union-attr]


def test_a_move_from_a_state_that_has_passed_is_not_made(registry: Registry, tmp_path: Path) -> None:
    gated(registry, tmp_path)
    registry.change(CHANNEL, Pin(False), expected_generation=0, actor="ops", reason="")
    with pytest.raises(GenerationChanged) as caught:
        registry.change(CHANNEL, Promote(1), expected_generation=0, actor="learner", reason="")
    assert caught.value.metadata == {"expected": "0", "actual": "1"}
    assert states(registry) == ["live", "gated"]


def test_unknown_channels_and_releases_are_named(registry: Registry, tmp_path: Path) -> None:
    stranger = Channel("instruction", "nobody")
    assert registry.state(stranger) is None
    with pytest.raises(UnknownChannel, match="instruction/nobody"):
        registry.salt(stranger)
    with pytest.raises(UnknownChannel):
        registry.change(stranger, Pin(True), expected_generation=None, actor="ops", reason="")
    with pytest.raises(UnknownChannel):
        registry.register(draft().replace(channel=stranger), artifacts(tmp_path))
    with pytest.raises(UnknownRelease, match="no release 7"):
        promote(registry, 7)
    with pytest.raises(UnknownRelease):
        registry.fetch(CHANNEL, 7, tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "A", "a b", "", "x" * 65, "ü"])
def test_a_channel_that_could_leave_its_folder_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidField):
        registry.ensure_channel(Channel("instruction", name), BASE)


# Artifacts.


def test_a_fetched_release_is_what_was_registered(registry: Registry, tmp_path: Path) -> None:
    row = registry.register(draft(), artifacts(tmp_path))
    folder = registry.fetch(CHANNEL, 1, tmp_path / "cache", base_digest=BASE)
    assert (folder / "policy" / "adapter_model.safetensors").read_bytes() == WEIGHTS
    assert hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() == row.digest
    assert registry.manifest(CHANNEL, 1).digest == row.digest
    assert registry.fetch(CHANNEL, 1, tmp_path / "cache") == folder
    assert registry.fetch(CHANNEL, 0, tmp_path / "cache").is_dir()


def test_what_is_kept_beside_a_release_is_no_part_of_it_and_can_be_erased(registry: Registry, tmp_path: Path) -> None:
    row = registry.register(draft(), artifacts(tmp_path), beside={PROBE_ANSWERS: "[]"})
    assert registry.kept_beside(CHANNEL, 0, PROBE_ANSWERS) is None
    assert registry.kept_beside(CHANNEL, 1, PROBE_ANSWERS) == "[]"
    assert registry.manifest(CHANNEL, 1).digest == row.digest
    folder = registry.fetch(CHANNEL, 1, tmp_path / "cache")
    assert not list(folder.rglob(f"*{PROBE_ANSWERS}")), "replicas never get it"
    next((tmp_path / "registry").rglob(f"*{PROBE_ANSWERS}")).unlink()
    assert registry.fetch(CHANNEL, 1, tmp_path / "another").is_dir()


def stored(tmp_path: Path, name: str) -> Path:
    (found,) = (tmp_path / "registry").rglob(f"1-*/{name}")
    return found


@pytest.mark.parametrize("damage", [b"", WEIGHTS[:-1], WEIGHTS.upper(), None])
@pytest.mark.parametrize("name", ["policy/adapter_model.safetensors", "manifest.json"])
def test_a_damaged_file_is_not_fetched(registry: Registry, tmp_path: Path, name: str, damage: bytes | None) -> None:
    registry.register(draft(), artifacts(tmp_path))
    path = stored(tmp_path, name)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(BadArtifact, match="restore it from a backup") as caught:
        registry.fetch(CHANNEL, 1, tmp_path / "cache")
    assert caught.value.metadata["expected"] == expected
    assert caught.value.metadata["digest"] == ("" if damage is None else hashlib.sha256(damage).hexdigest())
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_damaged_local_copy_is_replaced(registry: Registry, tmp_path: Path) -> None:
    registry.register(draft(), artifacts(tmp_path))
    folder = registry.fetch(CHANNEL, 1, tmp_path / "cache")
    (folder / "policy" / "adapter_model.safetensors").write_bytes(b"half")
    assert registry.fetch(CHANNEL, 1, tmp_path / "cache") == folder
    assert (folder / "policy" / "adapter_model.safetensors").read_bytes() == WEIGHTS


def test_a_release_of_another_base_is_not_fetched(registry: Registry, tmp_path: Path) -> None:
    registry.register(draft(), artifacts(tmp_path))
    with pytest.raises(BadArtifact, match=f"{BASE}.*{'d' * 64}"):
        registry.fetch(CHANNEL, 1, tmp_path / "cache", base_digest="d" * 64)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "state.pkl", "script.py", ".hidden.json"])
def test_files_that_may_run_code_are_not_registered(registry: Registry, tmp_path: Path, name: str) -> None:
    folder = artifacts(tmp_path)
    (folder / "policy" / name).write_bytes(b"x")
    with pytest.raises(BadArtifact, match=name):
        registry.register(draft(), folder)
    assert len(registry.releases(CHANNEL)) == 1


def test_a_link_is_not_registered(registry: Registry, tmp_path: Path) -> None:
    folder = artifacts(tmp_path)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "policy" / "linked.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(BadArtifact, match="link"):
        registry.register(draft(), folder)


def test_an_adapter_that_is_not_the_one_in_the_manifest_is_not_registered(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="adapter"):
        registry.register(draft(b"other weights"), artifacts(tmp_path))


def test_a_list_of_artifacts_that_disagrees_with_the_folder_is_not_registered(
    registry: Registry, tmp_path: Path
) -> None:
    with pytest.raises(BadArtifact, match=r"adapter_config\.json"):
        registry.register(
            draft(artifacts={"policy/adapter_model.safetensors": hashlib.sha256(WEIGHTS).hexdigest()}),
            artifacts(tmp_path),
        )


def test_a_file_in_the_way_is_not_overwritten(registry: Registry, tmp_path: Path) -> None:
    manifest = draft()
    registry.register(manifest, artifacts(tmp_path))
    weights = stored(tmp_path, "policy/adapter_model.safetensors")
    weights.write_bytes(b"damaged")
    numbered = registry.manifest(CHANNEL, 1)
    with pytest.raises(BadArtifact, match="never overwritten"):
        registry._artifacts.write(numbered, artifacts(tmp_path))
    assert weights.read_bytes() == b"damaged"


def test_artifacts_may_lie_in_an_object_store(tmp_path: Path) -> None:
    with Registry(f"sqlite:///{tmp_path / 'store.sqlite'}", f"memory://{tmp_path.name}") as registry:
        registry.ensure_channel(CHANNEL, BASE)
        registry.register(draft(), artifacts(tmp_path))
        folder = registry.fetch(CHANNEL, 1, tmp_path / "cache")
        assert (folder / "policy" / "adapter_model.safetensors").read_bytes() == WEIGHTS


# Rivals.


RIVAL = """
import sys
from pathlib import Path
from plaudit.errors import GenerationChanged
from plaudit.release.registry import Promote, Registry
from plaudit.types import Channel
directory, version = Path(sys.argv[1]), int(sys.argv[2])
with Registry((directory / "url").read_text(), str(directory / "registry")) as registry:
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        registry.change(
            Channel("instruction", "acme"), Promote(version), expected_generation=0, actor="rival", reason="race"
        )
        print("won")
    except GenerationChanged:
        print("lost")
"""


@pytest.mark.apart
def test_of_two_processes_that_promote_from_one_state_exactly_one_wins(registry: Registry, tmp_path: Path) -> None:
    for _ in range(2):
        gated(registry, tmp_path)
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(tmp_path), str(version)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in (1, 2)
    ]
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    outcomes = [rival.communicate(timeout=500)[0].strip() for rival in rivals]
    assert sorted(outcomes) == ["lost", "won"]
    winner = outcomes.index("won") + 1
    assert registry.state(CHANNEL).live == winner  # type: ignore[union-attr]
    assert [row.live for row in registry.history(CHANNEL)] == [0, winner]
    assert [row.version for row in registry.releases(CHANNEL) if row.state is ReleaseState.LIVE] == [winner]


def test_a_move_from_a_stale_reading_is_not_made(registry: Registry) -> None:
    # Databases that let two transactions read before either writes rest on the comparison alone.
    stale = registry.state(CHANNEL)
    assert stale is not None
    registry.change(CHANNEL, Pin(False), expected_generation=0, actor="ops", reason="")
    with registry.database.writing() as connection:
        assert make_move(connection, stale, Pin(True), "late", "") is None
    assert registry.state(CHANNEL) == dataclasses.replace(stale, generation=1)
    assert [row.actor for row in registry.history(CHANNEL)] == ["registry", "ops"]


def test_rivals_without_an_expected_generation_all_succeed_one_after_the_other(registry: Registry) -> None:
    def pin_often() -> None:
        for _ in range(5):
            registry.change(CHANNEL, Pin(True), expected_generation=None, actor="ops", reason="")

    threads = [threading.Thread(target=pin_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.generation for row in registry.history(CHANNEL)] == list(range(21))


def test_rivals_that_register_get_a_version_each(registry: Registry, tmp_path: Path) -> None:
    folder = artifacts(tmp_path)
    threads = [
        threading.Thread(target=lambda seed=seed: registry.register(draft(seeds={"turn": seed}), folder))
        for seed in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = registry.releases(CHANNEL)
    assert [row.version for row in rows] == list(range(7))
    assert sorted(registry.manifest(CHANNEL, row.version).seeds["turn"] for row in rows[1:]) == list(range(6))


def test_rivals_that_begin_a_channel_agree_on_its_salt(registry: Registry) -> None:
    channel, salts, start = Channel("instruction", "shared"), set(), threading.Barrier(4)

    def begin() -> None:
        start.wait()
        registry.ensure_channel(channel, BASE)
        salts.add(registry.salt(channel))

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(salts) == 1


# Guards and full disks.


def refuse(connection: sa.Connection) -> None:
    raise LeaseLost("another learner works on this channel")


def test_whoever_lost_its_lease_writes_nothing(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(LeaseLost):
        registry.register(draft(), artifacts(tmp_path), guard=refuse)
    assert [row.version for row in registry.releases(CHANNEL)] == [0]
    row = registry.register(draft(), artifacts(tmp_path))
    with pytest.raises(LeaseLost):
        registry.decide(CHANNEL, row.version, YES, guard=refuse)
    assert registry.release(CHANNEL, row.version).state is ReleaseState.TRAINED
    registry.decide(CHANNEL, row.version, YES)
    move = Promote(row.version)
    with pytest.raises(LeaseLost):
        registry.change(CHANNEL, move, expected_generation=0, actor="late", reason="", guard=refuse)
    assert registry.state(CHANNEL).generation == 0
    lease = Leases(registry.database).take("learn")
    registry.change(CHANNEL, move, expected_generation=0, actor="holder", reason="", guard=lease.check)
    assert registry.state(CHANNEL).live == row.version


def test_a_full_disk_is_unavailable_for_a_first_request_and_then_the_channel_begins(
    tmp_path: Path, small_disk: Path
) -> None:
    with Registry(f"sqlite:///{tmp_path / 'store.sqlite'}", str(small_disk / "registry")) as registry:
        filler = small_disk / "filler"
        fill(filler)
        with pytest.raises(StoreUnavailable, match="full") as caught:
            registry.ensure_channel(CHANNEL, BASE)
        assert caught.value.code == "UNAVAILABLE"
        assert registry.state(CHANNEL) is None
        filler.unlink()
        assert registry.ensure_channel(CHANNEL, BASE).live == 0


def test_a_full_disk_of_the_database_is_unavailable_and_is_named(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk / 'store.sqlite'}"
    filler = small_disk / "filler"
    with Registry(url, f"memory://{small_disk.name}") as registry:
        fill(filler)
        with pytest.raises(StoreUnavailable, match=r"store\.sqlite cannot grow: its disk is full"):
            fill_with_channels(registry)
        filler.unlink()
        registry.ensure_channel(CHANNEL, BASE)


def test_a_start_on_a_full_disk_says_what_is_full(small_disk: Path) -> None:
    fill(small_disk / "filler")
    with pytest.raises(StoreUnavailable, match="full"):
        Registry(f"sqlite:///{small_disk / 'store.sqlite'}", str(small_disk / "registry"))


def fill_with_channels(registry: Registry) -> None:
    for number in range(1000):
        registry.ensure_channel(Channel("instruction", f"tenant-{number}"), BASE)


def fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


# Crashes.

DYING = """
import sys
from pathlib import Path
from plaudit.release.manifest import Manifest
from plaudit.release.registry import Registry
directory = Path(sys.argv[1])
with Registry((directory / "url").read_text(), str(directory / "registry")) as registry:
    manifest = Manifest.from_json((directory / "draft.json").read_text())
    registry.register(manifest, directory / "trained", beside={"probe_answers.json": "[1]"})
"""


@pytest.mark.parametrize("point", ["release.1", "release.2"])
@pytest.mark.apart
def test_a_crash_while_registering_loses_and_doubles_nothing(registry: Registry, tmp_path: Path, point: str) -> None:
    manifest, folder = draft(), artifacts(tmp_path)
    (tmp_path / "draft.json").write_text(manifest.to_json())
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(tmp_path)], env={**os.environ, "PLAUDIT_FAIL_POINT": point}, check=False
    )
    assert died.returncode == 137
    assert len(registry.releases(CHANNEL)) == (1 if point == "release.1" else 2)
    if point == "release.2":
        # A release that is recorded has all that stands beside it, if its turn dies at once.
        assert registry.kept_beside(CHANNEL, 1, PROBE_ANSWERS) == "[1]"

    row = registry.register(manifest, folder, beside={PROBE_ANSWERS: "[1]"})
    assert registry.kept_beside(CHANNEL, 1, PROBE_ANSWERS) == "[1]"

    assert [known.version for known in registry.releases(CHANNEL)] == [0, 1]
    assert registry.fetch(CHANNEL, 1, tmp_path / "cache").name == f"1-{row.digest[:12]}"


def test_files_left_by_a_crash_do_not_stop_another_release(registry: Registry, tmp_path: Path) -> None:
    numbered = draft(version=1, artifacts=list_artifacts(artifacts(tmp_path)), seeds={"turn": 1})
    registry._artifacts.write(numbered, artifacts(tmp_path))
    assert registry.register(draft(), artifacts(tmp_path)).version == 1
    assert registry.manifest(CHANNEL, 1).seeds == {}
    registry.fetch(CHANNEL, 1, tmp_path / "cache")
