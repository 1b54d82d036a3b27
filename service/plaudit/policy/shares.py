"""What a process computes of an iteration of PPO: the passes that `engine.ranks` shares out."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from plaudit.engine import adapters
from plaudit.engine.protocol import Generated, ReleaseKey
from plaudit.engine.ranks import Here
from plaudit.policy.loop import NAME
from plaudit.policy.rollout import Rollout, TrainPrompt, completion_logprobs, sample
from plaudit.types import Sampling


class Asked(NamedTuple):
    """Completions of some prompts, of which the first stands at `place` among all; see `rollout.sample`."""

    prompts: Sequence[TrainPrompt]
    release: ReleaseKey
    sampling: Sampling
    samples: int
    seed: int
    place: int
    capture: bool


def sampled(here: Here, asked: Asked) -> list[Generated]:
    """The completions, `samples` of each prompt, under the newest weights."""
    with contextlib.ExitStack() as stack:
        # The engine has the adapter in its own way, on a thread of its own.
        stack.enter_context(adapters.active(here.base, None))
        elsewhere = asked.release not in here.engine.staged()
        if elsewhere:  # a follower, which has the weights on its base
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            adapters.save(here.base, NAME, folder)
            stack.enter_context(here.engine.hold(asked.release, folder, temperature=asked.sampling.temperature))
        made = sample(
            here.engine,
            asked.prompts,
            asked.release,
            asked.sampling,
            samples=asked.samples,
            seed=asked.seed,
            place=asked.place,
            capture=asked.capture,
        )
        generated = [each.generated for each in made]
        return [_own(each) for each in generated] if elsewhere else generated


def _own(generated: Generated) -> Generated:
    """With activations in a tensor of their own: what is sent brings no whole batch along."""
    hidden = generated.hidden
    return generated if hidden is None else dataclasses.replace(generated, hidden=hidden.cpu().clone())


class Scored(NamedTuple):
    """Rows of a rollout whose tokens are to be scored."""

    rollout: Rollout
    rows: Sequence[int]
    start_layer: int
    temperature: float


def logprobs_of(here: Here, scored: Scored) -> torch.Tensor:
    """Log-probs (N,) of the rows' completion tokens under the adapter in force, on the CPU."""
    rollout = scored.rollout._replace(hidden=[each.to(here.base.device) for each in scored.rollout.hidden])
    return completion_logprobs(here.base, rollout, scored.rows, scored.start_layer, scored.temperature).cpu()
