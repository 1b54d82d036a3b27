"""Best of n: what a release's reward model likes best among given answers, as a baseline for reports.

Enters: a release, prompts and their answers. Leaves: for each prompt the place of one answer. Trains nothing and
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
from plaudit.reward.model import RewardModel
from plaudit.reward.trunk import Completion
from plaudit.settings import Settings
from plaudit.types import Channel, Message, Request


def pick(
    settings: Settings, channel: Channel, version: int, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[int]:
    """For each prompt (one user turn) the answer with the greatest pessimistic score of the release's reward model.

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
        for text, offered in zip(prompts, answers, strict=True):
            rendered = plugin.render(Request(messages=(Message("user", text),)))
            prompt = base.encode(rendered.messages).tokens
            scores = reward.scores([Completion(prompt, base.encode_text(answer)) for answer in offered])
            picks.append(int(reward.pessimistic(reward.reference_centred(scores, scores)).argmax()))
        reward.close()
    return picks
