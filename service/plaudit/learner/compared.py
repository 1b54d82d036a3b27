"""What the compared states of a turn answered, left on disk for a judge who is not the reward model.

Enters: each state with its answers to held-out prompts, as the optimiser compares it. Leaves: one JSON file per turn
beside what else the channel keeps, if `learn.compared_turns` asks for it; an erasure takes it along. Nothing here is
read again by the learner: a demo's hidden preference judges the answers after all learning has ended.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from plaudit.learner.context import Turn
from plaudit.learner.references import References, as_shown
from plaudit.policy.iterates import Iterate
from plaudit.policy.optimizer import Optimised
from plaudit.policy.rollout import Sample

STEM = "compared"  # The first word of the files' names.
FILES = f"{STEM}-*.json"


class ComparedStates:
    """Collects the states of one turn."""

    def __init__(self, turn: Turn, references: References) -> None:
        self._turn, self._references = turn, references
        self._newest = turn.settings.learn.compared_turns
        self._base: dict[str, list[str]] = {}
        self._states: list[dict[str, Any]] = []

    def looked(self, iterate: Iterate, samples: Sequence[Sample]) -> None:
        """Takes a state and its answers, those of one prompt next to each other."""
        if not self._newest:
            return
        answers: dict[str, list[str]] = {}
        for each in samples:
            group = each.prompt.group
            answers.setdefault(group, []).append(as_shown(self._turn.base, self._turn.plugin, each)[1])
            if group not in self._base:
                self._base[group] = [text for _, text in self._references.of(each.prompt)]
        self._states.append({**iterate.as_dict(), "answers": answers})

    def leave(self, optimised: Optimised) -> None:
        """Writes what was taken; earlier turns' files beyond `learn.compared_turns` go, all of them if that is 0."""
        if not self._newest:
            with contextlib.suppress(OSError):  # the next turn comes by here again
                self._turn.kept.files.thin(FILES, 0)
        if not self._states:
            return
        content = {
            "as_of": self._turn.as_of.isoformat(),
            "live": self._turn.state.live,
            "chosen": optimised.chosen,
            "progressed": optimised.progressed,
            "base": self._base,
            "states": self._states,
        }
        name = f"{STEM}-{self._turn.as_of:%Y%m%dT%H%M%S.%f}.json"
        self._turn.kept.files.leave(name, json.dumps(content, ensure_ascii=False), FILES, self._newest)
