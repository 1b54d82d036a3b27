"""`plaudit learn plan` against people: when would the first turn have begun on feedback that was really given?

    python benchmarks/plan.py DATA_DIR CHANNEL

reads the evidence of a channel in the order in which it was acknowledged (of a demo's data, say: `plaudit demo
--keep-data`), sorts its people by DRAWS fresh salts, and finds for each the number of acts after which every need of a
first turn is met. Beside it stands the plan for the same number of people and the same shares of kinds. Prints JSON.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from collections import Counter
from pathlib import Path

from plaudit.evidence.splits import Split, group_split, rater_split
from plaudit.evidence.store import EvidenceStore, FrozenDataSet
from plaudit.learner import needs
from plaudit.learner.plan import DRAWS, Mix, plan
from plaudit.reward.dataset import collect
from plaudit.settings import Settings
from plaudit.types import Channel, FeedbackKind

STEP = 25


def first_turn(data: FrozenDataSet, settings: Settings, salt: bytes) -> int | None:
    """Acts after which every need is met under a salt; None if they do not suffice."""
    rows = [
        dataclasses.replace(
            row, rater_split=rater_split(salt, row.who), group_split=group_split(salt, row.prompt_group)
        )
        for row in sorted(data.rows, key=lambda row: row.accepted_at)
    ]
    for acts in range(STEP, len(rows) + 1, STEP):
        given = rows[:acts]
        groups = Counter({row.prompt_group: row.group_split for row in given}.values())
        train = sum(row.rater_split is Split.TRAIN and row.group_split is Split.TRAIN for row in given)
        gate = sum(row.rater_split is Split.GATE for row in given)
        held_out = collect(
            dataclasses.replace(data, rows=tuple(given)), Split.CALIBRATION, needs.PlainText(), settings.reward
        )
        found = (
            *needs.of_events(train, settings.learn),
            *needs.of_prompts(groups[Split.TRAIN], groups[Split.GATE], settings.gate),
            *needs.of_evidence(held_out, train, gate, settings.gate),
        )
        if all(need.met for need in found):
            return acts
    return None


def main(folder: Path, channel: Channel) -> dict[str, object]:
    """The comparison."""
    settings = Settings(data_dir=folder)
    store, rng = EvidenceStore(settings.store_url), random.Random(0)
    data = store.freeze(channel, b"salt")
    store.close()
    people = len({row.who for row in data.rows})
    kinds = Counter(row.kind for row in data.rows)
    # A correction is neither thumb nor comparison; the plan has no such kind.
    known = {kind: kinds[kind] for kind in (FeedbackKind.THUMBS, FeedbackKind.CHOICE, FeedbackKind.RANKING)}
    total = sum(known.values())
    thumbs, choices, rankings = (count / total for count in known.values())
    reached = [first_turn(data, settings, rng.randbytes(32)) for _ in range(DRAWS)]
    order = sorted(reached, key=lambda each: each or len(data.rows) + 1)
    prompts = len({row.prompt_group for row in data.rows})
    per_prompt = len(data.rows) / prompts
    planned = plan(
        Mix(raters=people, thumbs=thumbs, choices=choices, rankings=rankings, per_prompt=per_prompt), settings
    )
    return {
        "acts": len(data.rows),
        "kinds": {kind.value: count for kind, count in sorted(kinds.items())},
        "people": people,
        "prompts": prompts,
        "given": {"half": order[len(order) // 2], "nine of ten": order[int(len(order) * 0.9) - 1]},
        "planned": dataclasses.asdict(planned.whole),
        "decides": planned.decides,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Channel.parse(sys.argv[2])), indent=2))
