"""Best of n: what a release's reward model likes best among given answers, as a baseline for reports.

Enters: a release, requests and their answers. Leaves: for each request an order of its answers. Trains nothing and
serves nothing: it says how far the reward model alone would take a service that could afford to sample n times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from plaudit.engine.base import Base
from plaudit.plugins import load_plugins
from plaudit.release.registry import Registry
from plaudit.reward.completion import Completion
from plaudit.reward.model import RewardModel
from plaudit.settings import Settings
from plaudit.types import Channel, Request


def pick(
    settings: Settings, channel: Channel, version: int, requests: Sequence[Request], answers: Sequence[Sequence[str]]
) -> list[list[int]]:
    """For each request the places of its answers by falling pessimistic score of the release's reward model.

    Answers are displayed texts: a reply carries no token ids, so the texts are tokenised anew and may have other
    tokens than those that were sampled and that training reads (`dataset.shown_tokens`).
    The answers of a prompt are each other's references: within a prompt that moves every score alike.
    """
    if settings.model.threads:
        torch.set_num_threads(settings.model.threads)
    plugin = load_plugins((channel.domain,))[channel.domain]
    base = Base.of(settings)
    with (
        Registry(settings.store_url, settings.registry_root) as registry,
        tempfile.TemporaryDirectory(prefix="plaudit-best-of-") as folder,
    ):
        release = registry.fetch(channel, version, Path(folder) / "release", base_digest=base.digest)
        reward = RewardModel.load(base, release / "reward", name="best-of")
        picks = []
        for request, offered in zip(requests, answers, strict=True):
            rendered = plugin.render(request)
            prompt = base.encode(rendered.messages).tokens
            scores = reward.scores([Completion(prompt, base.encode_text(answer)) for answer in offered])
            ranked = reward.pessimistic(reward.reference_centred(scores, scores)).argsort(descending=True, stable=True)
            picks.append(ranked.tolist())
        reward.close()
    return picks
