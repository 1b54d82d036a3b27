"""The fit of this learner's reward model beside TRL's RewardTrainer: time, memory and accuracy on the same preferences.

Preferences are made up, as public sets are shaped: a prompt, two completions of unlike lengths, and which of them a
person took. Words have hidden worths, and people choose by the sum with a doubt of their own, so that even the hidden
worths order only some of the choices rightly (`ceiling`). Each round is a fit of its own on pairs of its own, in one
epoch from the same base; then both sides order the same held-out pairs, which no fit saw. The two run in processes of
their own and take turns (`sides.py`); what is prepared before a fit and judged behind it does not count.

Ours is the service's fit as it is set: three heads (each on its own bootstrap draw) and an adapter on four layers of
the lower two thirds, fitted from the heads' optimum. TRL's is one head on the last layer and an adapter on all layers.
Its step size is an argument: adapters are usually given ten times TRL's own default, and are so here.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install torch trl peft
    python benchmarks/reward.py --peer-python /tmp/trl/bin/python --rounds 5 --out benchmarks/results/reward.json

A GPU (`--device cuda`) has not been measured.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import sides
import torch
from plaudit.engine.base import Base
from plaudit.engine.frozen import quicken
from plaudit.engine.packed import number_format
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.reward.completion import Completion
from plaudit.reward.fit import fit_reward
from plaudit.settings import ModelSettings, RewardSettings
from plaudit.testing.evidence import CHANNEL, make_interaction
from plaudit.types import FeedbackKind, Interaction, Pair, PairOutcome
from sized import ALPHA, RANK, model_folder
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
OURS, THEIRS = sides.OURS, sides.THEIRS
NOW = dt.datetime(2027, 1, 4, tzinfo=dt.UTC)
LENGTHS = (16, 32)  # tokens of a completion
WORDS = 60  # that people of a round use
WORTHY, CERTAINTY = 0.2, 3.0  # share of words that are good, and as many bad; log-odds of a choice per unit of worth
PAIRS_OF_A_RATER = 10


def main() -> None:
    arguments = parsed()
    if arguments.side:
        answer(arguments)
        return
    with tempfile.TemporaryDirectory(prefix="plaudit-reward-") as scratch:
        folder = arguments.models or Path(scratch)
        source = model_folder(folder, arguments.size)
        for number in range(arguments.rounds + 1):
            made = preferences(source, arguments, arguments.seed + number)
            (Path(scratch) / f"pairs-{number}.json").write_text(json.dumps(made), encoding="utf-8")
        report = measured(folder, Path(scratch), arguments)
    sides.write(report, arguments.out)
    if arguments.out is not None:
        bars = {f"{arguments.pairs} pairs": {name: report[name]["cpu seconds"] for name in report["sides"]}}
        sides.draw(arguments.out.with_suffix(".png"), "One fit of a reward model", "seconds of processor", bars)


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides.options(parser)
    parser.add_argument("--peer-lr", type=float, default=1e-3, help="step size of TRL's")
    parser.add_argument("--pairs", type=int, default=400, help="pairs of a fit")
    parser.add_argument("--held-out", type=int, default=400, help="pairs that both are judged by")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the first round; the next ones follow")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(given)


def measured(folder: Path, scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides, round by round; the first round counts for nothing."""
    work = [
        *("--size", arguments.size, "--models", str(folder), "--device", arguments.device, "--side", str(scratch)),
        *(f"--{name}={getattr(arguments, name)}" for name in ("threads", "dtype", "rounds", "seed")),
    ]
    theirs = [HERE / "trl_reward.py", *work, f"--lr={arguments.peer_lr}"]
    commands = sides.commands(arguments.peer_python, [__file__, *work], theirs)
    facts, found = sides.in_turns(commands, rounds=arguments.rounds, warm=1, threads=arguments.threads)
    pairs = [json.loads((scratch / f"pairs-{n}.json").read_text()) for n in range(1, arguments.rounds + 1)]
    right = {name: [each["right"] for each in own] for name, own in found.items()}
    report: dict[str, Any] = {
        "benchmark": "reward",
        "size": arguments.size,
        "pairs": arguments.pairs,
        "held-out pairs of a round": arguments.held_out,
        "sides": list(found),
        **sides.compared(found),
        "accuracy": {name: share([each for own in several for each in own]) for name, several in right.items()},
        "accuracy by round": {name: [round(statistics.mean(own), 3) for own in each] for name, each in right.items()},
        "ceiling": round(statistics.mean(each["ceiling"] for each in pairs), 3),
        "the longer one": round(statistics.mean(each["longer"] for each in pairs), 3),
    }
    if THEIRS in right:
        apart = [
            a - b
            for own, their in zip(right[OURS], right[THEIRS], strict=True)
            for a, b in zip(own, their, strict=True)
        ]
        report[f"accuracy, {OURS} less {THEIRS}"] = share(apart)
    report["versions"] = {name: own["versions"] for name, own in facts.items()}
    kept = ("seed", "rounds", "peer_lr", "dtype", "device", "threads")
    return report | {name: getattr(arguments, name) for name in kept} | sides.machine()


def share(values: Sequence[float]) -> dict[str, float]:
    """Mean, and its 95% interval over the pairs of all rounds."""
    mean, error = statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": round(mean, 3), "low": round(mean - 1.96 * error, 3), "high": round(mean + 1.96 * error, 3)}


def preferences(source: Path, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Pairs as token ids, [prompt, taken, other], without the end of turn; what their hidden worths would order."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    drawn = random.Random(seed)
    words = [i for i in range(3, len(tokenizer)) if (text := tokenizer.decode([i])).isascii() and text.strip()]
    words = drawn.sample(words, WORDS)
    count = round(WORTHY * len(words))
    worth = dict.fromkeys(words[:count], 1.0) | dict.fromkeys(words[count : 2 * count], -1.0)
    made, ordered, longer = [], [], []
    for _ in range(arguments.pairs + arguments.held_out):
        prompt = drawn.choices(words, k=arguments.prompt)
        both = [drawn.choices(words, k=drawn.randint(*LENGTHS)) for _ in range(2)]
        gold = [sum(worth.get(each, 0.0) for each in own) / math.sqrt(len(own)) for own in both]
        first = drawn.random() < 1 / (1 + math.exp(-CERTAINTY * (gold[0] - gold[1])))
        taken, other = both if first else both[::-1]
        made.append([prompt, taken, other])
        ordered.append(0.5 if gold[0] == gold[1] else float((gold[0] > gold[1]) == first))
        longer.append(0.5 if len(taken) == len(other) else float(len(taken) > len(other)))
    train = arguments.pairs
    means = {name: statistics.mean(each[train:]) for name, each in (("ceiling", ordered), ("longer", longer))}
    return {"train": made[:train], "held_out": made[train:], "end": tokenizer.eos_token_id, **means}


def answer(arguments: argparse.Namespace) -> None:
    """The rounds of our side."""
    rounds = sides.Rounds()
    torch.set_num_threads(arguments.threads)
    base = Base.load(model_folder(arguments.models, arguments.size), device=arguments.device, dtype="float32")
    quicken(base, number_format(arguments.dtype))
    rounds.wait(versions={"torch": torch.__version__})
    for number in range(arguments.rounds + 1):
        pairs = json.loads((arguments.side / f"pairs-{number}.json").read_text())
        rounds.wait(right=fitted(base, pairs, arguments.seed + number, rounds))


def fitted(base: Base, pairs: dict[str, Any], seed: int, rounds: sides.Rounds | None = None) -> list[int]:
    """A fit on the pairs; of each held-out pair 1 if the model orders it rightly, else 0."""
    data = frozen(base, pairs["train"])
    if rounds is not None:
        rounds.start()
    model = fit_reward(
        base, data, {}, RewardSettings(), ModelSettings(adapter_rank=RANK, adapter_alpha=ALPHA), seed=seed
    )
    if rounds is not None:
        rounds.stop()
    taken, other = (
        model.scores([Completion(tuple(pair[0]), tuple(pair[side])) for pair in pairs["held_out"]]).mean(1)
        for side in (1, 2)
    )
    model.close()
    return [int(each) for each in taken > other]


def frozen(base: Base, pairs: Sequence[Sequence[Sequence[int]]]) -> FrozenDataSet:
    """The pairs as the evidence of choices, ten of each rater."""
    interactions: dict[str, Interaction] = {}
    rows = []
    for number, (prompt, *both) in enumerate(pairs):
        name = f"{number:06d}"
        plain = make_interaction(name)
        texts = [base.decode(own) for own in both]
        candidates = tuple(
            replace(each, tokens=tuple(own), text=text, displayed_text=text)
            for each, own, text in zip(plain.candidates, both, texts, strict=True)
        )
        interactions[name] = replace(plain, candidates=candidates, prompt_tokens=tuple(prompt))
        first, second = (each.candidate_id for each in candidates)
        rows.append(
            EvidenceRow(
                interaction_id=name,
                feedback_id=name,
                index=0,
                kind=FeedbackKind.CHOICE,
                evidence=Pair(first=first, second=second, outcome=PairOutcome.FIRST),
                who=f"rater-{number // PAIRS_OF_A_RATER}",
                accepted_at=NOW,
                rater_split=Split.TRAIN,
                group_split=Split.TRAIN,
                prompt_group=plain.prompt_group,
            )
        )
    return FrozenDataSet(channel=CHANNEL, as_of=NOW, digest="", offsets=(), rows=tuple(rows), interactions=interactions)


if __name__ == "__main__":
    main()
