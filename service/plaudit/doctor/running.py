"""What is wrong most often with a deployment that runs: a process that stopped, a replica behind, a disk nearly full.

Enters: what `plaudit status` shows, ports, folders. Leaves: findings with a remedy. A deployment that never ran has
none: whatever has not been started cannot have stopped.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit.doctor.findings import Finding
from plaudit.domain import DomainPlugin
from plaudit.settings import ADDRESS_FILE, STORE_FILE, Settings

if TYPE_CHECKING:  # packages that the doctor finds missing must not keep it from saying so
    from plaudit.learner.report import ChannelReport, Deployment
    from plaudit.store.processes import Process

FREE_BYTES = 2 * 1024**3  # A week of interactions and a few releases of a small model; a full disk stops the log.
_FREE_SHARE = 0.05
# Records that a join of default size reads in a second or two; more are a join that is slow or stands still.
_UNREAD = 5_000
_HEARD_SECONDS = 30.0
_STARTS = {"serve": "plaudit serve", "join": "plaudit join", "learn": "plaudit learn"}


def running(settings: Settings, plugins: Mapping[str, DomainPlugin]) -> Iterator[Finding]:
    """Findings about the processes and channels of a deployment; none if there is no store yet."""
    if not settings.store.url.get_secret_value() and not (settings.data_dir / STORE_FILE).exists():
        return
    from plaudit.learner.report import deployment

    found = deployment(settings, plugins)
    seen = [each for each in found.running if not each.lost]
    for kind in ("serve", "join", "learn"):
        yield from _process(kind, found, seen)
    if found.expired:
        words = f"retention deleted {found.expired} records before the join read them: they are lost"
        remedy = "keep records longer than the join may be away (log.kafka.retention_days), and see that it runs"
        yield Finding("retention", "note", words, remedy)
    for channel in found.channels:
        yield from _behind(channel, seen)
        if any(each.kind == "learn" for each in seen):
            yield from _learning(channel)


def _process(kind: str, found: Deployment, seen: list[Process]) -> Iterator[Finding]:
    mine = [each for each in found.running if each.kind == kind]
    live = [each for each in mine if not each.lost]
    unread = found.unread if kind == "join" else None
    if live:
        words = f"runs: {', '.join(each.owner for each in live)}"
        if unread is not None and unread > _UNREAD:
            remedy = "look at its log and at plaudit_join_batch_seconds; on Kafka several joins share the partitions"
            yield Finding(kind, "bad", f"{words}, and {unread} records are unread", remedy)
        else:
            yield Finding(kind, "good", words if unread is None else f"{words}; {unread} records unread")
        return
    # Without the join nothing teaches, and without a learner nothing is learnt: only what ran and ended can be missed.
    if not (mine or seen or unread):
        return
    words = f"{mine[0].owner} was not seen for {mine[0].silent:.0f} s" if mine else "does not run"
    if unread:
        words += f"; {unread} records wait to be joined"
    yield Finding(kind, "bad", words, f"start it: {_STARTS[kind]}, or all three: plaudit up")


def _behind(channel: ChannelReport, seen: list[Process]) -> Iterator[Finding]:
    """Replicas that do not serve what the channel's state says; one that has not been asked yet serves nothing."""
    for each in seen:
        if each.kind != "serve" or channel.channel not in each.facts.get("serves", {}):
            continue
        serves = each.facts["serves"][channel.channel]
        if serves["behind"] or (serves["version"] != channel.live and _old(channel.live_since)):
            words = f"{each.owner} serves version {serves['version']} of {channel.channel}, live is {channel.live}"
            remedy = "its log says why it cannot serve the release (`cannot serve the live release`); to go back: "
            yield Finding("replica", "bad", words, f"{remedy}plaudit release rollback {channel.channel}")


def _old(moment: str) -> bool:
    """Whether a replica that runs has heard of a change that was made then, and said so."""
    return dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(moment) > dt.timedelta(seconds=_HEARD_SECONDS)


def _learning(channel: ChannelReport) -> Iterator[Finding]:
    newest = channel.turns[0] if channel.turns else None
    if newest is not None and newest.outcome in ("failed", "lost"):
        again = "start the learner again" if newest.outcome == "lost" else "the turn is tried again by itself"
        remedy = f"fix what it names; {again}"
        yield Finding("learning", "bad", f"{channel.channel}: the last turn failed: {newest.reason}", remedy)
    elif short := [str(need) for need in channel.needs if not need.met]:
        yield Finding("learning", "note", f"{channel.channel} waits for {', '.join(short)}", channel.advice)
    elif channel.said:
        yield Finding("learning", "note", f"{channel.channel}: {channel.said}", "plaudit status has more")


def disk(settings: Settings) -> Iterator[Finding]:
    """Free space where the data directory and a registry of files lie."""
    folders = {"data directory": settings.data_dir.absolute()}
    if "://" not in settings.registry_root and Path(settings.registry_root).exists():
        folders["registry"] = Path(settings.registry_root)
    devices = set()
    for name, folder in folders.items():
        if not folder.exists() or (device := os.stat(folder).st_dev) in devices:
            continue
        devices.add(device)
        usage = shutil.disk_usage(folder)
        words = f"{usage.free / 1e9:.1f} GB free ({usage.free / usage.total:.0%}) for the {name} {folder}"
        if usage.free < FREE_BYTES:
            yield Finding(
                "disk", "bad", words, "free space, or use a larger disk: 2 GB at least; a full one stops the log"
            )
        elif usage.free < _FREE_SHARE * usage.total:
            yield Finding("disk", "note", f"{words}: nearly full", "free space before it is full: that stops the log")
        else:
            yield Finding("disk", "good", words)


def ports(settings: Settings, roles: tuple[str, ...], seen: list[Process]) -> Iterator[Finding]:
    """Ports that a start would not get. What a process of this very deployment holds is as it should be."""
    host, here = settings.serve.host, {each.kind for each in seen if _is_here(each)}
    if _serves_here(settings):
        here.add("serve")
    wanted = {
        "serve": {
            "serve.port": settings.serve.port,
            "serve.metrics_port": settings.serve.metrics_port,
            "serve.http_port": max(0, settings.serve.http_port),
        },
        "join": {"join.metrics_port": settings.join.metrics_port},
        "learn": {"learn.metrics_port": settings.learn.metrics_port},
    }
    held: list[str] = []
    taken: list[str] = []
    for role in roles:
        for key, port in wanted[role].items():
            if port and not _free(host, port):
                (held if role in here else taken).append(f"{key} = {port}")
    if taken:
        remedy = "end what holds the port, or set another"
        yield Finding("ports", "bad", f"taken by a program that is none of this deployment: {', '.join(taken)}", remedy)
    else:
        yield Finding("ports", "good", f"held by this deployment: {', '.join(held)}" if held else "free")


def _is_here(process: Process) -> bool:
    """Whether it runs on this machine."""
    host, _, pid = process.owner.rpartition(":")
    return not process.lost and host == socket.gethostname()[:100] and _alive(int(pid))


def _serves_here(settings: Settings) -> bool:
    """Whether the server that wrote its address into the data directory runs."""
    try:
        return _alive(int(json.loads((settings.data_dir / ADDRESS_FILE).read_text())["pid"]))
    except (OSError, ValueError, KeyError):
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
