"""Where the loop stands: what `plaudit status` says, and `plaudit doctor` asks.

Enters: the stores and, if it is embedded, the event log. Leaves: facts of every channel and of the processes. Asks what
the learner asks at each look and changes nothing; loads no model, so that an operator may run it anywhere.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from plaudit.domain import DomainPlugin
from plaudit.errors import PlauditError
from plaudit.eventlog import Topic, open_log
from plaudit.evidence.places import next_offsets
from plaudit.evidence.rejections import by_reason
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.outcome import Need, TurnOutcome
from plaudit.learner.since import LEASE
from plaudit.learner.survey import survey
from plaudit.privacy import erasure
from plaudit.release.decision import Decision
from plaudit.release.moves import ChannelState
from plaudit.release.reading import gain
from plaudit.release.registry import Registry
from plaudit.settings import Settings
from plaudit.store.leases import Leases
from plaudit.store.outcomes import RememberedTurn, TurnOutcomes
from plaudit.store.processes import Process, current, processes
from plaudit.types import Channel

TURNS = 3
KINDS = ("serve", "join", "learn")
_HOUR = dt.timedelta(hours=1)
_LONG_SECONDS = 120.0  # A process that reports no progress for longer is at a long step, or hangs.


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnReport:
    """How a turn ended. `refusals`: each failed check with value, bound, 95% bounds, note and next step."""

    at: str
    outcome: str
    reason: str
    attempts: int
    version: int | None = None
    refusals: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelReport:
    """One channel.

    `requests` are interactions since the live release went live, and of the last hour. `feedback` counts acts with
    evidence by kind. `said` is what the learner's last look waited for, `learner` who works on a turn, `step` what at.
    """

    channel: str
    live: int
    generation: int
    pinned: bool
    live_since: str
    live_by: str
    gain: str
    requests: int
    requests_last_hour: int
    feedback: Mapping[str, int]
    waiting: int
    rejected: int
    no_consent: int
    needs: tuple[Need, ...]
    advice: str
    turns: tuple[TurnReport, ...]
    learner: str = ""
    step: str = ""
    said: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasureReport:
    """People who are being erased.

    `deleting`: whose data are not all deleted; `retiring`: of whose data a release still serves that learnt from them;
    `overdue`: those of both that have taken longer than `privacy.retrain_days` allows; `oldest`: when the first asked.
    """

    deleting: int = 0
    retiring: int = 0
    overdue: int = 0
    oldest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Every channel that was asked, the processes, and how many records the join has not read (None: not known).

    `expired` counts those that it never will: retention deleted them before.
    `rejected` counts records that the join could not use, by reason, those of no channel too.
    """

    channels: tuple[ChannelReport, ...]
    running: tuple[Process, ...]
    unread: int | None
    expired: int
    rejected: Mapping[str, int]
    erasures: ErasureReport
    now: str = field(compare=False)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        found["processes"] = [
            {**each, "started_at": each["started_at"].isoformat(timespec="seconds"), "lost": process.lost}
            for each, process in zip(found.pop("running"), self.running, strict=True)
        ]
        return found


def deployment(settings: Settings, plugins: Mapping[str, DomainPlugin], only: Channel | None = None) -> Deployment:
    """Every channel that people have used, or one, as it stands now. Raises Misconfigured if there is no store."""
    settings.check_has_run()
    with _opened(settings) as (store, registry):
        found = processes(store.database)
        with store.database.reading() as connection:
            rejected = by_reason(connection)
        wanted = [state for state in registry.states() if only in (None, state.channel)]
        running = tuple(each for kind in KINDS for each in current(found, kind))
        return Deployment(
            channels=tuple(_report(settings, plugins, store, registry, state, running) for state in wanted),
            running=running,
            unread=_unread(settings, store, running),
            expired=store.lost_to_retention(),
            rejected=rejected,
            erasures=_erasures(settings, store),
            now=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )


@contextmanager
def _opened(settings: Settings) -> Iterator[tuple[EvidenceStore, Registry]]:
    store = EvidenceStore(settings.store_url)
    try:
        with Registry(settings.store_url, settings.registry_root) as registry:
            yield store, registry
    finally:
        store.close()


def _unread(settings: Settings, store: EvidenceStore, running: tuple[Process, ...]) -> int | None:
    """Records that the join has not read: of the embedded log by a look, of Kafka as the join said last."""
    if settings.log.kind == "sqlite":
        log = open_log(settings)
        try:
            read = next_offsets(store.positions())
            consumer = log.consumer((Topic.INTERACTIONS, Topic.FEEDBACK), "plaudit-status", dict)
            firsts, ends = consumer.first_positions(), consumer.end_positions()
            consumer.close()
        finally:
            log.close()
        return sum(max(0, end - read.get(place, firsts[place])) for place, end in ends.items())
    joins = [each for each in running if each.kind == "join"]
    # The partitions of one that died are another's by now, which counts their records too.
    said = [int(each.facts.get("unread", 0)) for each in joins if not each.lost] or [
        int(each.facts.get("unread", 0)) for each in joins
    ]
    return sum(said) if said else None


def _erasures(settings: Settings, store: EvidenceStore) -> ErasureReport:
    waiting = erasure.unfinished(store.database)
    if not waiting:
        return ErasureReport()
    now = dt.datetime.now(dt.UTC)
    deleting = sum(each.erased_at is None for each in waiting)
    return ErasureReport(
        deleting=deleting,
        retiring=len(waiting) - deleting,
        overdue=sum(each.is_overdue(settings.privacy.retrain_days, now) for each in waiting),
        oldest=waiting[0].requested_at.isoformat(timespec="seconds"),
    )


def _report(
    settings: Settings,
    plugins: Mapping[str, DomainPlugin],
    store: EvidenceStore,
    registry: Registry,
    state: ChannelState,
    running: tuple[Process, ...],
) -> ChannelReport:
    channel, outcomes, name = state.channel, TurnOutcomes(store.database), str(state.channel)
    # The change since which this version serves without a break: a pin changes the generation alone.
    changes = registry.history(channel)
    first = next((i for i in range(len(changes), 0, -1) if changes[i - 1].live != state.live), 0)
    began = changes[min(first, len(changes) - 1)]
    counts, advice, problem = store.counts(channel), "", ""
    needs: tuple[Need, ...] = ()
    feedback: dict[str, int] = {}
    if channel.domain in plugins:
        try:
            declaration = plugins[channel.domain].declaration
            found = survey(store, registry, outcomes, settings.for_channel(channel), declaration, state)
            needs, advice = found.needs, found.advice
            feedback = {kind.value: acts for kind, acts in sorted(found.acts.items())}
        except PlauditError as error:
            problem = error.message
    else:
        problem = f"the domain {channel.domain} is not installed here, so its needs cannot be counted"
    decision = registry.release(channel, state.live).decision_json
    holder = Leases(store.database).holder(LEASE.format(channel=channel))
    learners = [each.facts for each in running if each.kind == "learn" and not each.lost]
    steps = [each for each in learners if each.get("channel") == name and each.get("step")]
    said = [each["said"][name] for each in learners if name in each.get("said", {})]
    return ChannelReport(
        channel=name,
        live=state.live,
        generation=state.generation,
        pinned=state.pinned,
        live_since=began.at.isoformat(timespec="seconds"),
        live_by=f"{began.actor}: {began.reason}" if began.reason else began.actor,
        gain=gain(Decision.from_json(decision)) if decision else "",
        requests=store.count_answered(channel, began.at),
        requests_last_hour=store.count_answered(channel, dt.datetime.now(dt.UTC) - _HOUR),
        feedback=feedback,
        waiting=counts.waiting,
        rejected=counts.rejected,
        no_consent=counts.no_consent,
        needs=needs,
        advice=advice,
        turns=tuple(_turn(each) for each in outcomes.recent(channel, TURNS)),
        learner=holder.owner if holder else "",
        step=f"step {steps[0]['step']} {steps[0]['name']} {steps[0].get('detail', '')}".strip() if steps else "",
        said=next((reason for outcome, reason in said if outcome == TurnOutcome.WAITED), ""),
        problem=problem,
    )


def _turn(turn: RememberedTurn) -> TurnReport:
    return TurnReport(
        at=turn.at.isoformat(timespec="seconds"),
        outcome=turn.outcome,
        reason=turn.reason,
        attempts=turn.attempts,
        version=turn.facts.get("version"),
        refusals=tuple(turn.facts.get("refusals", ())),
    )


# Words ----------------------------------------------------------------------------------------------


def as_text(found: Deployment) -> str:
    """The deployment for people."""
    parts = [_channel_lines(each, found.now) for each in found.channels] or ["no channel has been asked yet"]
    return "\n\n".join([*parts, _process_lines(found)])


def _when(moment: str, now: str) -> str:
    """A moment and how long ago it was."""
    at = dt.datetime.fromisoformat(moment)
    seconds = int((dt.datetime.fromisoformat(now) - at).total_seconds())
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{at:%Y-%m-%d %H:%M} UTC, {seconds // size} {unit} ago"
    return f"{at:%Y-%m-%d %H:%M:%S} UTC, {max(seconds, 0)} s ago"


def _channel_lines(each: ChannelReport, now: str) -> str:
    pinned = ", pinned" if each.pinned else ""
    version = f"version {each.live}" if each.live else "version 0, the base,"
    lines = [
        f"{each.channel}",
        f"  live      {version} since {_when(each.live_since, now)}{pinned} (by {each.live_by})",
        f"  traffic   {each.requests} requests since then, {each.requests_last_hour} in the last hour",
    ]
    if each.gain:
        lines.append(f"  gain      {each.gain}")
    acts = ", ".join(f"{count} {kind}" for kind, count in each.feedback.items()) or "none yet"
    others = ((each.waiting, "wait for their interaction"), (each.rejected, "rejected"))
    rest = [f"{count} {what}" for count, what in others if count]
    lines.append(f"  feedback  {'; '.join([acts, *rest])}")
    if each.no_consent:
        lines.append(f"  consent   {each.no_consent} requests teach nothing: nobody agreed to it")
    if each.step or each.learner:
        lines.append(f"  learning  a turn runs: {each.step or 'by ' + each.learner}")
    if each.problem:
        lines.append(f"  learning  {each.problem}")
    elif not each.step and not each.learner:
        lines += _need_lines(each)
    for turn in each.turns:
        lines += _turn_lines(turn, now)
    return "\n".join(lines)


def _need_lines(each: ChannelReport) -> list[str]:
    short = [str(need) for need in each.needs if not need.met]
    met = [str(need) for need in each.needs if need.met and need.want > 1]
    if not short:
        # What only a turn can see (texts that the model reads alike, prompts that are refused today) it has said.
        return [f"  learning  {each.said or 'nothing is missing: the next look begins a turn'}"]
    lines = [f"  waits for {'; '.join(short)}"]
    if met:
        lines.append(f"  has       {'; '.join(met)}")
    return [*lines, f"  to do     {each.advice}"] if each.advice else lines


def _turn_lines(turn: TurnReport, now: str) -> list[str]:
    version = f" version {turn.version}" if turn.version is not None else ""
    if not turn.refusals:
        return [f"  turn      {turn.outcome}{version} ({_when(turn.at, now)}): {turn.reason}"]
    lines = [f"  turn      {turn.outcome}{version} ({_when(turn.at, now)}), because of"]
    for check in turn.refusals:
        value = "not measured" if check["value"] is None else f"{check['value']:.3g}"
        if check["low"] is not None and check["high"] is not None:
            value += f" [{check['low']:.3g}, {check['high']:.3g}]"
        note = f" ({check['note']})" if check["note"] else ""
        lines.append(f"              {check['check']}: {value}, bound {check['bound']:.3g}{note}")
        lines.append(f"              next step: {check['next_step']}")
    return lines


def _erasure_lines(people: ErasureReport, now: str) -> list[str]:
    said = [
        *([f"{people.deleting} whose data are being deleted"] if people.deleting else []),
        *([f"{people.retiring} from whom a release learnt that still serves"] if people.retiring else []),
        *([f"{people.overdue} OVERDUE (does a join run?)"] if people.overdue else []),
    ]
    return [f"erasures: {'; '.join(said)}; the oldest asked {_when(people.oldest, now)}"] if said else []


def _engine_servers(found: Mapping[str, Mapping[str, Any]]) -> str:
    away = sorted(address for address, each in found.items() if not each["up"])
    unknown = sorted(address for address, each in found.items() if each["up"] and each["max_loras"] is None)
    if not found:
        return ""
    return "".join(
        [
            f"; {len(found) - len(away)} of {len(found)} vLLM servers take requests",
            f", NOT {', '.join(away)}" if away else "",
            f"; --max-loras unknown of {', '.join(unknown)} (docs/vllm.md)" if unknown else "",
        ]
    )


def _outbox(found: Mapping[str, Any]) -> str:
    if not found.get("records"):
        return ""
    return f"; {found['records']} records wait in its outbox for Kafka, the oldest for {found['oldest_seconds']:.0f} s"


def _process_lines(found: Deployment) -> str:
    lines = []
    if found.rejected:
        counts = ", ".join(f"{count} {reason}" for reason, count in found.rejected.items())
        lines.append(f"rejected by the join: {counts} (plaudit rejected list)")
    if found.expired:
        lines.append(f"LOST: {found.expired} records, which retention deleted before the join read them")
    lines += _erasure_lines(found.erasures, found.now)
    for kind in KINDS:
        of_kind = [each for each in found.running if each.kind == kind]
        if not of_kind:
            lines.append(
                f"{kind:<6} does not run, or is still starting; start it: plaudit {kind}, or all three: plaudit up"
            )
        for each in of_kind:
            state = f"NOT SEEN for {each.silent:.0f} s" if each.lost else "runs"
            facts = ""
            if kind == "join" and found.unread is not None:
                facts = f"; {found.unread} records unread"
            if kind == "serve":
                behind = [name for name, serves in each.facts.get("serves", {}).items() if serves["behind"]]
                facts = f"; BEHIND on {', '.join(behind)}" if behind else ""
                facts += _engine_servers(each.facts.get("servers", {}))
                facts += _outbox(each.facts.get("outbox", {}))
            if each.quiet > _LONG_SECONDS and not each.lost:
                facts += f"; busy with one thing, or hanging, for {each.quiet / 60:.0f} min"
            began = _when(each.started_at.isoformat(timespec="seconds"), found.now)
            lines.append(f"{kind:<6} {state}, {each.owner}, since {began}{facts}")
    return "\n".join(lines)
