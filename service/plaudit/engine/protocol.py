"""What an engine is: the seam between serving or learning and whatever runs the model.

One engine implementation serves requests and makes the learner's rollouts; each process that needs one owns an
instance. Adapters are *staged* under a ReleaseKey while decoding goes on; a job names the key it runs on and stays
on it from its first token to its last.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from plaudit.types import FinishReason, Message, Sampling

if TYPE_CHECKING:
    import torch


UNREGISTERED = -1  # Version of an adapter that is no release (yet): rollouts, candidates before their version is taken.


@dataclass(frozen=True, slots=True, order=True)
class ReleaseKey:
    """A release as an engine knows it. Version 0 is the base, without an adapter; UNREGISTERED is no release yet."""

    channel: str
    version: int
    digest: str

    def __str__(self) -> str:
        """Return "channel@version"."""
        return f"{self.channel}@{self.version}"


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """Token ids of a rendered prompt; the first `prefix_length` are the same for every prompt of this system text."""

    tokens: tuple[int, ...]
    prefix_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One completion to be made.

    `sampling.temperature` is already resolved (the release's own if the caller named none). `width` pins the
    batch width (a replay); None lets the engine choose. `capture` returns trunk activations with the result.
    """

    prompt: EncodedPrompt
    release: ReleaseKey
    sampling: Sampling
    seed: int
    width: int | None = None
    capture: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A finished completion. Log-probs in nats, one per token, the ending token included.

    `hidden`: (P + C - 1, H) input of layer `capture_layer` at every token that was fed: the prompt and all generated
    tokens but the last; None unless asked for.
    """

    tokens: tuple[int, ...]
    text: str
    logprobs_raw: tuple[float, ...]
    logprobs_sampled: tuple[float, ...]
    finish_reason: FinishReason
    width: int
    release: ReleaseKey
    hidden: torch.Tensor | None = None


class Ticket(Protocol):
    """A submitted job."""

    def deltas(self, timeout: float | None = None) -> Iterator[str]:
        """New text as it comes, until the completion ends; raises TimeoutError after `timeout` seconds in all."""

    def result(self, timeout: float | None = None) -> Generated:
        """The finished completion; raises TimeoutError, Cancelled, or what broke the job."""

    def so_far(self) -> Generated:
        """What `deltas` has given out, with the tokens behind it, as a completion that was cancelled."""

    def cancel(self) -> None:
        """Frees the slot at the next step; no effect on a finished job."""


class ScoreTicket(Protocol):
    """Submitted options."""

    def result(self, timeout: float | None = None) -> list[tuple[float, ...]]:
        """Log-probs (nats) of each option's tokens and then of its end; raises TimeoutError or Cancelled."""

    def cancel(self) -> None:
        """Ends the work at the next step; no effect on a finished request."""


class PrefixFound(enum.StrEnum):
    """What there was of a prompt's shared beginning."""

    CACHED = "cached"
    SHARED_LAYERS = "shared_layers"
    COMPUTED = "computed"


class Observer(Protocol):
    """Is told of an engine's work by the thread that does it; must return at once."""

    def queued(self, seconds: float) -> None:
        """A completion begins to decode, so long after it was submitted."""

    def first_token(self, seconds: float) -> None:
        """A completion has its first token, so long after it was submitted."""

    def stepped(self, seconds: float | None, used: int, idle: int) -> None:
        """A batch had a step: rows with and without a completion, and the time since its step before, if there is one.

        That time is how long a completion waited for its next token.
        """

    def prefix(self, found: PrefixFound) -> None:
        """The shared beginning of a prompt was looked for; not told of prompts without one."""

    def server(self, address: str, up: bool, adapters: int, max_loras: int | None) -> None:
        """Whether a server that runs the model for us takes requests, and how many adapters it was proved with.

        `max_loras`: its places for adapters, None if it does not say.
        Told again and again, and at once if it goes away.
        """


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory (bytes) of keys and values, held and allowed, and adapter slots, used and in all."""

    kv_bytes: int
    kv_limit: int
    slots_used: int
    slots: int


class Engine(Protocol):
    """Runs the model."""

    base_digest: str
    base_dtype: str
    """Number format in which the engine computes the base: "float32", "bfloat16" or "int8"."""
    context_length: int
    widths: tuple[int, ...]
    end_of_turn: int
    """The token that ends a completion: what `score_options` adds after each option."""

    @property
    def capture_layer(self) -> int | None:
        """Layer whose input comes back with a captured job; None if the engine captures nothing."""

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids of a conversation under the model's chat template, ready for the assistant's turn."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, without special tokens."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""

    def submit(self, jobs: Sequence[Job]) -> Sequence[Ticket]:
        """Queues jobs; raises QueueFull, PromptTooLong, RequestTooLarge or ReleaseNotServable, and then queues none."""

    def score(
        self,
        prompt: EncodedPrompt,
        completions: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """Log-probs (nats) of each completion's tokens after the prompt, under softmax(logits / temperature).

        Waits for its turn, and is never refused for a full queue; raises PromptTooLong or OptionsTooLong.
        """

    def score_options(
        self,
        prompt: EncodedPrompt,
        options: Sequence[Sequence[int]],
        release: ReleaseKey,
        temperature: float | None = None,
    ) -> ScoreTicket:
        """Queues options; the ticket gives the log-probs of each one's tokens and of the end of turn behind them.

        Their sum is the exact log-probability that the release writes the option and nothing else. `temperature` None
        is the release's own. Raises QueueFull, PromptTooLong, RequestTooLarge, OptionsTooLong or ReleaseNotServable.
        """

    def stage(self, key: ReleaseKey, adapter: Path | None, *, temperature: float = 1.0) -> None:
        """Loads an adapter (PEFT format; None for the base) under `key` while decoding goes on, and pins it.

        Raises BadArtifact, or SlotsInUse if every other adapter is pinned, held or decoded on.
        """

    def hold(self, key: ReleaseKey, adapter: Path | None, *, temperature: float = 1.0) -> AbstractContextManager[bool]:
        """As `stage`, for a block; gives whether the adapter had to be loaded (and is to be proved).

        Afterwards it stays until its slot is needed for another; jobs that were submitted in the block keep it. It
        is how many releases share few slots.
        """

    def unstage(self, key: ReleaseKey) -> None:
        """Unpins `key` and forgets it once its last job has ended."""

    def staged(self) -> dict[ReleaseKey, float]:
        """Staged keys with their default temperatures."""

    def load(self) -> tuple[int, int]:
        """Jobs that decode, and jobs that wait."""

    def usage(self) -> Usage:
        """What is held of memory and slots now."""

    def observe(self, observer: Observer) -> None:
        """Tells `observer` of the work from now on, and whoever was told before no more."""

    def close(self, drain_seconds: float = 0.0) -> None:
        """Ends the engine, after at most `drain_seconds` for jobs under way; later submits raise NotServing."""
