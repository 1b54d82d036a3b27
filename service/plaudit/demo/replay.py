"""Makes logged replies again on an idle engine and counts those that differ.

Enters: settings, replies out of the log, and the registry. Leaves: how many were replayed, how many differ, and the
first that do. The engine is of the same build, with the same settings and number of threads as the one that served,
and has nothing else to do; every reply meets other neighbours than it had.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plaudit.demo.audit import Reply, read_log
from plaudit.engine.protocol import EncodedPrompt, Job, ReleaseKey
from plaudit.eventlog import open_log
from plaudit.release.registry import Registry
from plaudit.serving.proof import REMOTE_GREATEST
from plaudit.settings import Settings
from plaudit.types import Action, Candidate, Channel

if TYPE_CHECKING:
    from plaudit.engine.torch_engine import TorchEngine

_SECONDS = 600.0
# Options of several requests are scored in one pass, and float32 sums depend on who shares it; another release
# differs by far more.
_SAME_SCORE_NATS = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay found. `spanned` of the `replayed` replies had begun before a swap and ended after it."""

    replayed: int
    spanned: int
    altered: int
    differing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return asdict(self)


def replay(settings: Settings, channel: Channel, count: int) -> Replay:
    """Replays up to `count` completions or options whose replies spanned a swap, else those nearest to one."""
    log = open_log(settings)
    try:
        replies = read_log(log, channel).replies
    finally:
        log.close()
    with Registry(settings.store_url, settings.registry_root) as registry:
        swaps = activations(replies)
        chosen = choose(replies, swaps, count)
        altered: list[str] = []
        with _engine(settings) as engine, tempfile.TemporaryDirectory() as folder:
            _stage(engine, registry, channel, chosen, Path(folder))
            ways = _SCORED if settings.engine.kind == "vllm" else _AGAIN
            for action, again in ways.items():
                of_kind = [each for each in chosen if each[0].interaction.action is action]
                altered += again(engine, channel, of_kind)
    spanned = sum(any(reply.spans(swap) for swap in swaps) for reply, _ in chosen)
    return Replay(replayed=len(chosen), spanned=spanned, altered=len(altered), differing=tuple(altered[:8]))


def activations(replies: Sequence[Reply]) -> list[dt.datetime]:
    """When this replica began to route requests to each release: the start of the first that it answered.

    The channel's state changes seconds earlier: a replica stages and proves a release before it serves it.
    """
    first: dict[int, dt.datetime] = {}
    for reply in replies:
        for candidate in reply.candidates:
            version = candidate.release_version
            if version and not reply.evaluation:
                first[version] = min(first.get(version, reply.started), reply.started)
    return sorted(first.values())


def choose(replies: Sequence[Reply], swaps: Sequence[dt.datetime], count: int) -> list[tuple[Reply, Candidate]]:
    """Completions to replay: nearest to a swap first, and those that spanned it before all others."""

    def distance(reply: Reply) -> float:
        if not swaps:
            return 0.0
        return min(
            -1.0 if reply.spans(swap) else min(abs(reply.started - swap), abs(reply.completed - swap)).total_seconds()
            for swap in swaps
        )

    ordered = sorted(replies, key=distance)
    pairs = [(reply, candidate) for reply in ordered for candidate in reply.candidates if not candidate.redacted]
    return pairs[:count]


@contextmanager
def _engine(settings: Settings) -> Iterator[TorchEngine]:
    import torch

    from plaudit.engine.base import Base
    from plaudit.engine.torch_engine import TorchEngine

    if settings.model.threads:
        torch.set_num_threads(settings.model.threads)
    base = Base.of(settings)
    engine = TorchEngine(base, settings.engine, settings.model)
    try:
        yield engine
    finally:
        engine.close()


def _stage(
    engine: TorchEngine, registry: Registry, channel: Channel, chosen: Sequence[tuple[Reply, Candidate]], folder: Path
) -> None:
    for version, digest in sorted({(candidate.release_version, candidate.release_digest) for _, candidate in chosen}):
        manifest = registry.manifest(channel, version)
        adapter = None
        if manifest.adapter is not None:
            adapter = registry.fetch(channel, version, folder / str(version)) / "policy"
        engine.stage(ReleaseKey(str(channel), version, digest), adapter, temperature=manifest.temperature)


def altered_completions(engine: TorchEngine, channel: Channel, chosen: Sequence[tuple[Reply, Candidate]]) -> list[str]:
    """Ids of the completions whose tokens differ when they are sampled again."""
    # All together: a lane may cost its full width whatever it holds, and one by one would then take as long for each.
    jobs = [
        Job(
            # The tokens are what the model read; redaction may have changed the logged text.
            prompt=EncodedPrompt(reply.interaction.prompt_tokens),
            release=_key(channel, candidate),
            sampling=candidate.sampling,
            seed=candidate.seed,
            width=candidate.width,
        )
        for reply, candidate in chosen
    ]
    tickets = [engine.submit([job])[0] for job in jobs]
    return [
        candidate.candidate_id
        for ticket, (_, candidate) in zip(tickets, chosen, strict=True)
        if ticket.result(_SECONDS).tokens != candidate.tokens
    ]


def altered_choices(engine: TorchEngine, channel: Channel, chosen: Sequence[tuple[Reply, Candidate]]) -> list[str]:
    """Ids of the options of which a log-probability differs when the request's options are scored again."""
    altered: list[str] = []
    # Candidate ids are of one interaction each.
    wanted = {candidate.candidate_id for _, candidate in chosen}
    for reply in {reply.interaction.interaction_id: reply for reply, _ in chosen}.values():
        options = sorted(reply.candidates, key=lambda candidate: candidate.place)
        ticket = engine.score_options(
            EncodedPrompt(reply.interaction.prompt_tokens),
            # The engine puts the end of turn behind each.
            [candidate.tokens[:-1] for candidate in options],
            _key(channel, options[0]),
            options[0].sampling.temperature,
        )
        scores = dict(zip((candidate.candidate_id for candidate in options), ticket.result(_SECONDS), strict=True))
        for candidate in options:
            pairs = zip(scores[candidate.candidate_id], candidate.logprobs_sampled, strict=True)
            if candidate.candidate_id in wanted and any(abs(now - then) > _SAME_SCORE_NATS for now, then in pairs):
                altered.append(candidate.candidate_id)
    return altered


def other_logprobs(engine: TorchEngine, channel: Channel, chosen: Sequence[tuple[Reply, Candidate]]) -> list[str]:
    """Ids of the completions whose log-probs are not those that the named release gives their tokens.

    Of completions that other programs drew, whose random numbers are not ours.
    """
    altered: list[str] = []
    for reply, candidate in chosen:
        if not candidate.tokens:
            continue
        prompt = EncodedPrompt(reply.interaction.prompt_tokens)
        (found,) = engine.score(prompt, [candidate.tokens], _key(channel, candidate))
        pairs = zip(found, candidate.logprobs_raw, strict=True)
        if not all(abs(now - then) <= REMOTE_GREATEST for now, then in pairs):
            altered.append(candidate.candidate_id)
    return altered


_AGAIN = {Action.COMPLETION: altered_completions, Action.CHOICE: altered_choices}
_SCORED = {Action.COMPLETION: other_logprobs, Action.CHOICE: altered_choices}


def _key(channel: Channel, candidate: Candidate) -> ReleaseKey:
    return ReleaseKey(str(channel), candidate.release_version, candidate.release_digest)
