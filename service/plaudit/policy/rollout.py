"""Fresh rollouts: the engine's completions of replayed prompts, as tensors for one PPO iteration.

In: an engine with the policy staged, prompts. Out: a Rollout. Log-probs are the engine's own under the policy's
temperature; trunk activations come with them, so that the trunk is never run again for policy, reference or value.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt, Engine, Generated, Job, ReleaseKey, Ticket
from plaudit.engine.threads import release_team
from plaudit.policy.ppo import token_logprobs
from plaudit.types import Prompt, Sampling

TRUNK_BATCH = 16
# Tokens of a training pass, whose activations are what an update holds: a third of a minibatch's at a twelfth more time
# (15M, 752 tokens in passes of 376), since each pass reads the weights.
PASS_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPrompt:
    """A prompt that may be rolled out: what the plugin rendered, and its tokens.

    `options`: tokens of each option without the end of turn, in the request's order; empty for completions. `case`: the
    id of the domain's practice case; empty for what people asked.
    """

    rendered: Prompt
    encoded: EncodedPrompt
    options: tuple[tuple[int, ...], ...] = ()
    case: str = ""

    @property
    def group(self) -> str:
        """Prompt group."""
        return self.rendered.group


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion of a prompt."""

    prompt: TrainPrompt
    generated: Generated


class Rollout(NamedTuple):
    """B completions for one update, right-padded. `mask` is True where a completion token counts."""

    samples: list[Sample]
    hidden: list[torch.Tensor]  # (P + C - 1, H) each: trunk activations of every token that was fed
    starts: list[int]  # P - 1 each: position whose output predicts the first completion token
    tokens: torch.Tensor  # (B, C)
    logprobs: torch.Tensor  # (B, C), under the policy's temperature, by the engine
    mask: torch.Tensor  # (B, C)

    def part(self, rows: Sequence[int]) -> Rollout:
        """Some of its rows, in tensors of their own: what goes to another process brings no whole batch along."""
        several = list(rows)
        samples = [dataclasses.replace(self.samples[row], generated=_bare(self.samples[row])) for row in several]
        hidden = [self.hidden[row].cpu().clone() for row in several]
        tensors = (each[several] for each in (self.tokens, self.logprobs, self.mask))
        return Rollout(samples, hidden, [self.starts[row] for row in several], *tensors)


def _bare(sample: Sample) -> Generated:
    return dataclasses.replace(sample.generated, hidden=None)


def sample(
    engine: Engine,
    prompts: Sequence[TrainPrompt],
    release: ReleaseKey,
    sampling: Sampling,
    *,
    samples: int,
    seed: int,
    first: int = 0,
    place: int = 0,
    seeded_by_prompt: bool = False,
    capture: bool = False,
    width: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """`samples` completions of each prompt, those of one prompt next to each other.

    Each completion's seed comes from `seed`, its number, counted from `first`, and the prompt's place, or with
    `seeded_by_prompt` from its tokens. `width`: of the batch that they are drawn in; None lets the engine choose.
    """
    # From here on the engine's thread computes, and this one waits.
    release_team()
    jobs = [
        [
            Job(
                prompt=p.encoded,
                release=release,
                sampling=sampling,
                seed=_seed(seed, _number(p) if seeded_by_prompt else place + i, j),
                capture=capture,
                width=width,
            )
            for j in range(first, first + samples)
        ]
        for i, p in enumerate(prompts)
    ]
    tickets: list[tuple[TrainPrompt, Ticket]] = []
    done: list[Sample] = []
    try:
        for prompt, group in zip(prompts, jobs, strict=True):
            tickets += [(prompt, ticket) for ticket in engine.submit(group)]
        for prompt, ticket in tickets:
            done.append(Sample(prompt=prompt, generated=ticket.result()))
            if progress is not None:
                progress(len(done), len(tickets))
    except BaseException:
        # Nobody will read the others; a later turn must not wait behind them.
        for _, ticket in tickets:
            ticket.cancel()
        raise
    return done


def _seed(seed: int, prompt: int, sample_: int) -> int:
    return (seed * 1_000_003 + prompt * 101 + sample_) % 2**63


def _number(prompt: TrainPrompt) -> int:
    digest = hashlib.sha256(",".join(map(str, prompt.encoded.tokens)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def collate(samples: Sequence[Sample], base: Base, start_layer: int) -> Rollout:
    """A Rollout of samples; the trunk is run here for those of an engine that captures nothing."""
    longest = max(len(s.generated.tokens) for s in samples)
    tokens = torch.zeros(len(samples), longest, dtype=torch.long)
    logprobs = torch.zeros(len(samples), longest)
    mask = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, s in enumerate(samples):
        length = len(s.generated.tokens)
        tokens[row, :length] = torch.tensor(s.generated.tokens)
        logprobs[row, :length] = torch.tensor(s.generated.logprobs_sampled)
        mask[row, :length] = True
    hidden = _trunk(samples, base, start_layer)
    starts = [len(s.prompt.encoded.tokens) - 1 for s in samples]
    return Rollout(list(samples), hidden, starts, tokens, logprobs, mask)


def _trunk(samples: Sequence[Sample], base: Base, start_layer: int) -> list[torch.Tensor]:
    """Trunk activations (P + C - 1, H) of each sample: the engine's, or computed here, a few of like length at once."""
    found = {row: s.generated.hidden for row, s in enumerate(samples) if s.generated.hidden is not None}
    fed = {
        row: (*s.prompt.encoded.tokens, *s.generated.tokens[:-1])
        for row, s in enumerate(samples)
        if s.generated.hidden is None
    }
    order = sorted(fed, key=lambda row: len(fed[row]))
    for i in range(0, len(order), TRUNK_BATCH):
        rows = order[i : i + TRUNK_BATCH]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(fed[row]) for row in rows], batch_first=True)
        states = base.trunk(padded, start_layer)
        found |= {row: states[j, : len(fed[row])] for j, row in enumerate(rows)}
    return [found[row] for row in range(len(samples))]


def passes(rollout: Rollout, rows: Sequence[int]) -> list[list[int]]:
    """Consecutive rows by pass: of one prompt, or of several of PASS_TOKENS tokens together at most."""
    found: list[list[int]] = []
    held = 0
    for prompt, several in itertools.groupby(rows, key=lambda row: rollout.samples[row].prompt.encoded.tokens):
        own = list(several)
        tokens = len(prompt) + sum(len(rollout.hidden[row]) - len(prompt) for row in own)
        if found and held + tokens <= PASS_TOKENS:
            found[-1] += own
            held += tokens
        else:
            found.append(own)
            held = tokens
    return found


def completion_states(base: Base, rollout: Rollout, rows: Sequence[int], start_layer: int) -> torch.Tensor:
    """Final hidden states (N, H) that predict each counting completion token of `rows`, in row order.

    Whatever adapter is active on the base takes part, with gradient. Completions of one prompt share its tokens: the
    prompt stands once in a sequence, each completion behind it sees the prompt and itself.
    """
    sequences: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        sequences.setdefault(rollout.samples[row].prompt.encoded.tokens, []).append(row)
    parts = [_sequence(rollout, several) for several in sequences.values()]
    device = parts[0].hidden.device
    hidden = torch.nn.utils.rnn.pad_sequence([part.hidden for part in parts], batch_first=True)  # (b, T, H)
    segments = torch.nn.utils.rnn.pad_sequence([part.segments for part in parts], batch_first=True, padding_value=-1)
    positions = torch.nn.utils.rnn.pad_sequence([part.positions for part in parts], batch_first=True)
    first = min(rollout.starts[row] for row in rows)
    final = base.run_layers(
        hidden,
        start_layer,
        base.num_layers,
        positions=positions.to(device),
        mask=_branching_bias(segments).to(device, hidden.dtype),
        first=first,
    )
    found = {
        row: torch.cat([final[b, rollout.starts[row] - first][None], final[b, begin - first : end - first]])
        for b, part in enumerate(parts)
        for row, (begin, end) in part.spans.items()
    }
    return base.norm(torch.cat([found[row] for row in rows]))


class _Sequence(NamedTuple):
    """A prompt and its completions: (T, H), and (T,) segment (0 the prompt, k the k-th completion) and position."""

    hidden: torch.Tensor
    segments: torch.Tensor
    positions: torch.Tensor
    spans: dict[int, tuple[int, int]]


def _sequence(rollout: Rollout, rows: Sequence[int]) -> _Sequence:
    length = rollout.starts[rows[0]] + 1
    hidden = [rollout.hidden[rows[0]][:length]]
    segments, positions = [torch.zeros(length, dtype=torch.long)], [torch.arange(length)]
    spans: dict[int, tuple[int, int]] = {}
    at = length
    for segment, row in enumerate(rows, start=1):
        own = rollout.hidden[row][length:]
        hidden.append(own)
        segments.append(torch.full((len(own),), segment))
        positions.append(torch.arange(length, length + len(own)))
        spans[row] = (at, at + len(own))
        at += len(own)
    return _Sequence(torch.cat(hidden), torch.cat(segments), torch.cat(positions), spans)


def _branching_bias(segments: torch.Tensor) -> torch.Tensor:
    """0 where a token sees another, -inf elsewhere, (b, 1, T, T): the prompt, its own segment's past, and itself."""
    length = segments.shape[1]
    past = torch.ones(length, length, dtype=torch.bool).tril()
    query, key = segments[:, :, None], segments[:, None, :]
    seen = past & ((key == 0) | (key == query))
    return torch.zeros(seen.shape).masked_fill_(~seen, -math.inf)[:, None]


def completion_logprobs(
    base: Base, rollout: Rollout, rows: Sequence[int], start_layer: int, temperature: float
) -> torch.Tensor:
    """Log-probs (N,) of the counting completion tokens of `rows`, in row order, under the active adapter."""
    states = completion_states(base, rollout, rows, start_layer)
    tokens = rollout.tokens[list(rows)][rollout.mask[list(rows)]]
    return token_logprobs(base, states, tokens.to(states.device), temperature)
