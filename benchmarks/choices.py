"""How verdicts are best learnt: exact expectation against drawn first places, and labels beside the reward or alone.

A tiny random model chooses one of five options; which is right depends on the kind of question (five kinds, matched to
the options anew for each seed). Three tables, of held-out questions throughout:

1. `variance`: the gradient of one minibatch by drawn first places against the exact one: E|g - g_exact|^2 /
   |g_exact|^2 over many draws, and the cosine of the two, at the base and half way.
2. `reach`: fresh prompts until the probability of the right option (gold) reaches a level, if the reward is the gold.
3. `labels`: what so many labels, a tenth of them wrong, are worth through a fitted reward model alone, through
   cross-entropy alone, and through both: accuracy of the decision on 100 questions, beside that of the base, of the
   commonest label, and of the reward model itself. Half of the questions that may be trained on have a label.

    python benchmarks/choices.py variance reach labels --seeds 0 1 2 3 4

Prints JSON: every run, then means with 95% t-intervals over seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import math
import platform
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from plaudit.domain import OptionScore
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.engine.protocol import EncodedPrompt
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.actions.choices import labels as labels_of
from plaudit.learner.references import OptionReferences
from plaudit.learner.rewards import OptionRewards
from plaudit.plugins import load_plugins
from plaudit.policy.choose import ChoiceOptimizer, ChoiceTask, ChoiceTrainer, Judge, Judged
from plaudit.policy.loop import NAME, on_the_base
from plaudit.policy.optimizer import hold_out
from plaudit.policy.rollout import TrainPrompt
from plaudit.reward.batch import Treatment
from plaudit.reward.fit import fit_reward
from plaudit.settings import ModelSettings, PolicySettings, RewardSettings
from plaudit.testing.models import tiny_model
from plaudit.types import (
    Action,
    Candidate,
    Channel,
    FeedbackKind,
    Interaction,
    Label,
    Message,
    Option,
    Prompt,
    Purpose,
    Sampling,
)

CHANNEL = Channel("echo-choice", "bench")
WORDS = (" tea", "cup", " And", "x", "arm")
KINDS = (
    "list {} kinds of tea",
    "want {} big books",
    "how do I get {} boxes?",
    "put {} in the cup",
    "who has {} ideas?",
)
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MODEL = ModelSettings(adapter_layers=2, threads=1)
TEMPERATURE, EVALUATED, WRONG = 1.0, 100, 0.1
LEVELS = (0.5, 0.7, 0.9)
MOST_ITERATIONS = 30
DRAWS = 400
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}
SETTINGS = {"lr": 0.01, "choice_prompts": 32, "minibatch": 16, "iterations": 8, "label_coef": 0.0}
SMALL_STEPS = {"kl_coef": 0.005, "choice_update_kl": 0.2}


class World:
    """A base, and questions with their right options for one seed."""

    def __init__(self, base: Base, seed: int) -> None:
        self.base, self.seed = base, seed
        draw = random.Random(seed)
        self._right = draw.sample(range(len(WORDS)), len(WORDS))
        self.tokens = tuple(base.encode_text(word) for word in WORDS)
        self.end = min(base.eos_ids)

    def prompt(self, number: int) -> TrainPrompt:
        """The question of a number; different numbers are different groups."""
        text = KINDS[number % len(KINDS)].format(number)
        messages = (Message("user", text),)
        options = tuple(Option(f"o{i}", word) for i, word in enumerate(WORDS))
        rendered = Prompt(messages=messages, options=options, group=f"{number:06d}")
        encoded = EncodedPrompt(self.base.encode(messages).tokens)
        return TrainPrompt(rendered=rendered, encoded=encoded, options=self.tokens)

    def prompts(self, numbers: Sequence[int]) -> list[TrainPrompt]:
        """Questions of numbers."""
        return [self.prompt(number) for number in numbers]

    def right(self, prompt: TrainPrompt) -> int:
        """The right option's place."""
        return self._right[int(prompt.group) % len(KINDS)]

    def gold(self, prompts: Sequence[TrainPrompt]) -> list[Judged]:
        """1 for the right option: a Judge."""
        rewards = torch.eye(len(WORDS), dtype=torch.float64)
        return [Judged(rewards[self.right(prompt)], (True,) * len(WORDS)) for prompt in prompts]

    def task(self, folder: Path, judge: Judge, train: Sequence[TrainPrompt], **more: Any) -> ChoiceTask:
        """A task on this base."""
        settings = PolicySettings(**{**SETTINGS, **more.pop("settings", {})})
        facts: dict[str, Any] = {
            **{"channel": CHANNEL, "base": self.base, "live": None, "train": train, "held_out": (), "model": MODEL},
            **{"settings": settings, "seed": self.seed, "folder": folder, "progress": lambda line: None},
            **{"judge": judge, "labels": {}, "place_weights": (1.0,), "option_score": OptionScore.SUM},
            **{"end_of_turn": self.end, "temperature": TEMPERATURE},
        }
        return ChoiceTask(**{**facts, **more})

    def worth(self, trainer: ChoiceTrainer, prompts: Sequence[TrainPrompt]) -> tuple[float, float]:
        """Mean probability of the right option, and how often it is the most probable."""
        batch = trainer.batch(prompts, 0, 2)
        right = torch.tensor([self.right(prompt) for prompt in prompts])
        first = torch.softmax(batch.old, -1)
        gold = first.gather(1, right[:, None]).mean()
        return gold.item(), (first.argmax(-1) == right).double().mean().item()


def variance(world: World, folder: Path) -> list[dict[str, Any]]:
    """Noise of the drawn gradient at the base and after some exact iterations."""
    rows = []
    task = world.task(folder, world.gold, world.prompts(range(16)), settings={"kl_coef": 0.0})
    drawn = world.task(folder, world.gold, (), settings={"kl_coef": 0.0, "first_place": "sampled"})
    with on_the_base(task):
        trainer, sampler = ChoiceTrainer(task), ChoiceTrainer(drawn)
        for iterations in (0, 3):
            for number in range(iterations):
                trainer.iterate(world.prompts(range(1000 + 32 * number, 1032 + 32 * number)), number)
            gold = world.worth(trainer, world.prompts(range(10_000, 10_000 + EVALUATED)))[0]
            jacobian = _jacobian(trainer, task.train)
            batch = trainer.batch(task.train, 0, 2)
            wanted = _slopes(trainer, batch) @ jacobian
            for samples in (2, 4, 16):
                found = [
                    _slopes(sampler, sampler.batch(task.train, seed, samples, batch.old)) @ jacobian
                    for seed in range(DRAWS)
                ]
                noise = statistics.fmean(((each - wanted) ** 2).sum().item() for each in found)
                cosine = statistics.fmean(torch.cosine_similarity(each, wanted, dim=0).item() for each in found)
                bias = ((torch.stack(found).mean(dim=0) - wanted) ** 2).sum().item()
                size = (wanted**2).sum().item()
                rows.append(
                    {"after_iterations": iterations, "gold": gold, "samples": samples}
                    | {"noise": noise / size, "of_the_mean": bias / size, "cosine": cosine}
                )
    return rows


def _slopes(trainer: ChoiceTrainer, batch: Any) -> torch.Tensor:
    """What each score adds to the loss where an iteration begins, flat: the ratio of every order is 1."""
    scores = batch.old.clone().requires_grad_(True)
    (slopes,) = torch.autograd.grad(trainer.parts(batch, scores).surrogate.mean(), scores)
    return slopes.flatten()


def _jacobian(trainer: ChoiceTrainer, prompts: Sequence[TrainPrompt]) -> torch.Tensor:
    """Gradient of every score by the adapter's weights, (P K, weights)."""
    parameters = adapters.parameters(trainer.task.base, NAME)
    rows = []
    for prompt in prompts:
        for option in range(len(prompt.options)):
            for parameter in parameters:
                parameter.grad = None
            slopes = torch.zeros(len(prompt.options), dtype=torch.float64)
            slopes[option] = 1.0
            trainer.scorer.backward([prompt], [slopes], NAME)
            rows.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    for parameter in parameters:
        parameter.grad = None
    return torch.stack(rows).double()


def reach(world: World, folder: Path) -> list[dict[str, Any]]:
    """Prompts until each level of gold, exactly and with drawn first places."""
    rows = []
    asked = world.prompts(range(10_000, 10_000 + EVALUATED))
    for name, settings in (
        ("exact", {}),
        *((f"{s} drawn", {"first_place": "sampled", "samples": s}) for s in (2, 4, 16)),
    ):
        task = world.task(folder, world.gold, (), settings={**SMALL_STEPS, **settings})
        reached: dict[float, int] = {}
        with on_the_base(task):
            trainer = ChoiceTrainer(task)
            gold = 0.0
            for iteration in range(MOST_ITERATIONS):
                trainer.iterate(world.prompts(range(32 * iteration, 32 * (iteration + 1))), iteration)
                gold = world.worth(trainer, asked)[0]
                for level in LEVELS:
                    if gold >= level:
                        reached.setdefault(level, 32 * (iteration + 1))
                if gold >= LEVELS[-1]:
                    break
        rows.append({"by": name, "gold": gold} | {f"prompts_to_{level}": reached.get(level) for level in LEVELS})
    return rows


def labels(world: World, folder: Path, counts: Sequence[int], coefs: Sequence[float]) -> list[dict[str, Any]]:
    """Accuracy of the decision by what teaches."""
    plugin = load_plugins((CHANNEL.domain,))[CHANNEL.domain]
    asked = world.prompts(range(10_000, 10_000 + EVALUATED))
    chosen = world.prompts(range(20_000, 20_000 + EVALUATED))
    rows = []
    for count in counts:
        prompts = world.prompts(range(2 * count))
        random.Random(world.seed).shuffle(prompts)
        data = _labelled(world, prompts[:count])
        random.Random(world.seed + 1).shuffle(prompts)
        references = OptionReferences(world.base, plugin, prompts)
        settings = RewardSettings(layer=2, adapter=True, adapter_layers=1)
        reward = fit_reward(
            world.base,
            data,
            references.by_group(),
            settings,
            MODEL,
            seed=world.seed,
            treatment=Treatment.CONTRAST,
            most_references=references.most,
        )
        judge = OptionRewards(reward, plugin, most_tokens=PolicySettings().trunk_tokens)
        judged = [int(each.rewards.argmax()) for each in judge(asked)]
        facts = {"labels": count, "reward_model": _share(judged, [world.right(p) for p in asked])}
        train, held_out = hold_out(prompts, PolicySettings())
        given = labels_of(data, prompts, world.base, settings)
        ways: list[tuple[str, Judge, float]] = [(f"reward and labels x {c:g}", judge, c) for c in coefs if c]
        ways = [("reward alone", judge, 0.0), *ways, *((f"labels alone x {c:g}", _flat, c) for c in coefs)]
        for name, paid, coef in ways:
            task = world.task(
                folder, paid, train, held_out=held_out, labels=given, settings={"label_coef": coef, "kl_coef": 0.02}
            )
            optimised = ChoiceOptimizer().optimise(task)
            with _loaded(world, optimised.adapter):
                trainer = ChoiceTrainer(task)
                (gold, accuracy), (_, other) = (world.worth(trainer, several) for several in (asked, chosen))
            kl = optimised.statistics[-1]["kl_nats_per_sequence"]
            rows.append(
                {**facts, "by": name, "accuracy": accuracy, "accuracy_for_choosing": other, "gold": gold, "kl": kl}
            )
        reward.close()
        with on_the_base(task):
            gold, accuracy = world.worth(ChoiceTrainer(task), asked)
        rows.append({**facts, "by": "base", "accuracy": accuracy, "gold": gold})
        commonest = statistics.mode(row.evidence.value for row in data.rows if isinstance(row.evidence, Label))
        share = _share([int(commonest[1:])] * EVALUATED, [world.right(p) for p in asked])
        rows.append({**facts, "by": "commonest label", "accuracy": share})
    return rows


def _flat(prompts: Sequence[TrainPrompt]) -> list[Judged]:
    return [Judged(torch.full((len(WORDS),), 0.5), (True,) * len(WORDS)) for _ in prompts]


def _share(found: Sequence[int], right: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(found, right, strict=True)) / len(right)


@contextlib.contextmanager
def _loaded(world: World, adapter: Path) -> Iterator[None]:
    adapters.load(world.base, NAME, adapter)
    try:
        yield
    finally:
        adapters.remove(world.base, NAME)


def _labelled(world: World, prompts: Sequence[TrainPrompt]) -> FrozenDataSet:
    """One label per prompt, a tenth of them wrong, by as many raters as no cap needs."""
    draw = random.Random(world.seed + 100)
    rows, interactions = [], {}
    for number, prompt in enumerate(sorted(prompts, key=lambda each: each.group)):
        name = f"i{prompt.group}"
        right = world.right(prompt)
        if draw.random() < WRONG:
            right = draw.choice([i for i in range(len(WORDS)) if i != right])
        interactions[name] = _interaction(world, name, prompt)
        rows.append(
            EvidenceRow(
                interaction_id=name,
                feedback_id=f"f{name}",
                index=0,
                kind=FeedbackKind.LABEL,
                evidence=Label(candidate=f"{name}-0", value=f"o{right}"),
                who=f"r{number // 15}",
                accepted_at=NOW,
                rater_split=Split.TRAIN,
                group_split=Split.TRAIN,
                prompt_group=prompt.group,
            )
        )
    return FrozenDataSet(channel=CHANNEL, as_of=NOW, digest="", offsets=(), rows=tuple(rows), interactions=interactions)


def _interaction(world: World, name: str, prompt: TrainPrompt) -> Interaction:
    candidates = tuple(
        Candidate(
            candidate_id=f"{name}-{i}",
            release_version=0,
            release_digest="",
            tokens=(*world.tokens[i], world.end),
            logprobs_raw=(),
            logprobs_sampled=(),
            text=option.text,
            displayed_text=option.text,
            finish_reason=None,
            sampling=Sampling(),
            seed=0,
            width=0,
            option_id=option.option_id,
            place=i,
        )
        for i, option in enumerate(prompt.rendered.options)
    )
    return Interaction(
        interaction_id=name,
        channel=CHANNEL,
        purpose=Purpose.SERVE,
        action=Action.CHOICE,
        messages=prompt.rendered.messages,
        prompt_group=prompt.group,
        candidates=candidates,
        completed_at=NOW,
        prompt_tokens=prompt.encoded.tokens,
    )


def summary(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Means over seeds with half-widths of their 95% t-intervals; of what is None (never reached) the count."""
    found = []
    cases = dict.fromkeys(tuple(row.get(key) for key in keys) for row in rows)
    for case in cases:
        several = [row for row in rows if tuple(row.get(key) for key in keys) == case]
        line: dict[str, Any] = dict(zip(keys, case, strict=True)) | {"seeds": len(several)}
        for name in several[0]:
            values = [row[name] for row in several if row[name] is not None]
            if name in (*keys, "seed") or not values:
                continue
            line[name] = round(statistics.fmean(values), 4)
            if len(values) > 1:
                half = T_95.get(len(values), 2.0) * statistics.stdev(values) / math.sqrt(len(values))
                line[f"{name}_half"] = round(half, 4)
            if len(values) < len(several):
                line[f"{name}_never"] = len(several) - len(values)
        found.append(line)
    return found


def main() -> None:
    """Run the tables that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=["variance", "reach", "labels"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--counts", type=int, nargs="+", default=[30, 120], help="labels")
    parser.add_argument("--coefs", type=float, nargs="+", default=[0.1, 1.0], help="policy.label_coef")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.tables}
    keys = {"variance": ("after_iterations", "samples"), "reach": ("by",), "labels": ("labels", "by")}
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "model", layers=3, hidden=32)
        for seed in arguments.seeds:
            world = World(Base.load(model), seed)
            for name in arguments.tables:
                extra = (arguments.counts, arguments.coefs) if name == "labels" else ()
                table = {"variance": variance, "reach": reach, "labels": labels}[name]
                rows[name] += [{"seed": seed, **row} for row in table(world, Path(folder) / "made", *extra)]
    facts = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1, "model": "tiny, random"}
    means = {name: summary(found, keys[name]) for name, found in rows.items()}
    print(json.dumps({"rows": rows, "means": means, **facts}, indent=1))


if __name__ == "__main__":
    main()
