"""CPU time and peak memory of one turn of the learner, by the number of acts and the heaviest rater's share of them.

A synthetic store (no log, no gRPC) of choices by many raters, and thumbs by one keen rater, on a tiny random model:
figures of the learner's own work on evidence, not of a model's. The reward models are heads alone, so that what grows
is not hidden under an adapter's passes. Each case is a process of its own, for its peak memory. Prints JSON.

    python benchmarks/learner.py --acts 1000 10000 --shares 0 0.5 --seconds 600
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import encode_feedback, encode_interaction
from plaudit.eventlog.protocol import Record
from plaudit.evidence import ingest
from plaudit.learner.context import Learner
from plaudit.learner.look import Watch, look
from plaudit.learner.loop import open_learner
from plaudit.settings import Settings
from plaudit.testing.evidence import CHANNEL, PlainDomain, make_feedback, make_interaction
from plaudit.testing.models import tiny_model
from plaudit.types import Candidate, Choice, Feedback, Interaction, Message, Thumbs

BATCH = 500  # interactions of one transaction
ACTS_PER_INTERACTION = 4
ACTS_PER_RATER = 20
GROUPS = 400  # prompt groups, however many interactions
MANY = {"min_events": 10**8}
PLUGINS = {CHANNEL.domain: PlainDomain()}
NOW = dt.datetime.now(dt.UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.5], help="the keen rater's share")
    parser.add_argument("--seconds", type=float, default=600.0, help="longest time of one case; then it is ended")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(int(arguments.case[0]), float(arguments.case[1]))))
        return
    rows = [_apart(acts, share, arguments.seconds) for acts in arguments.acts for share in arguments.shares]
    facts = {"torch": torch.__version__, "python": platform.python_version(), "threads": 1, "model": "tiny, random"}
    print(json.dumps({"rows": rows, **facts}, indent=1))


def _apart(acts: int, share: float, seconds: float) -> dict[str, Any]:
    """One case in a process of its own."""
    command = [sys.executable, __file__, "--case", str(acts), str(share)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"acts": acts, "heaviest_share": share, "outcome": f"ended after {seconds:g} s"}
    if done.returncode:
        return {"acts": acts, "heaviest_share": share, "outcome": f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def case(acts: int, share: float) -> dict[str, Any]:
    """One turn, measured."""
    with tempfile.TemporaryDirectory(prefix="plaudit-benchmark-") as folder:
        settings = settings_for(Path(folder))
        learner = replace(open_learner(settings), plugins=PLUGINS)
        learner.registry.ensure_channel(CHANNEL, learner.base.digest)
        fill(learner, acts, share)
        look_seconds = time_of_look(learner, settings)
        before, began = peak_mb(), time.process_time()
        result = look(learner, CHANNEL, Watch(), force=True)
        seconds = time.process_time() - began
        learner.close()
    return {
        "acts": acts,
        "heaviest_share": share,
        "outcome": str(result.outcome) if result else "none",
        "cpu_seconds": round(seconds, 2),
        "steps": learner.status.seconds,
        "survey_cpu_milliseconds": round(1000 * look_seconds, 1),
        "peak_mb": round(peak_mb()),
        "peak_before_mb": round(before),
    }


def settings_for(folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "data_dir": folder / "data",
            "model": {"path": str(tiny_model(folder / "model")), "adapter_layers": 2, "threads": 1},
            "reward": {"adapter": False},
            "policy": {"iterations": 2, "prompts": 16, "samples": 4, "max_tokens": 16, "held_out": 0},
            "gate": {"min_prompts": 20, "prompts": 40, "reward_comparisons": 20, "reward_raters": 2},
            "learn": {"promote": False, "nice": 0},
        }
    )


def fill(learner: Learner, acts: int, share: float) -> None:
    """Evidence as the join would write it."""
    draw, offsets = random.Random(0), iter(range(10**9))
    keen = round(acts * share)
    others = max(5, round((acts - keen) / ACTS_PER_RATER))
    made = interactions(learner, -(-acts // ACTS_PER_INTERACTION), draw)
    left = acts
    while several := [each for _, each in zip(range(BATCH), made, strict=False)]:
        given: list[Feedback] = []
        for interaction in several:
            for number in range(min(ACTS_PER_INTERACTION, left)):
                left -= 1
                given.append(_act(interaction, number, draw, keen / acts, others))
        with learner.store.database.writing() as connection:
            fresh, _ = ingest.write_interactions(
                connection,
                [(_record(Topic.INTERACTIONS, next(offsets), encode_interaction(i, producer="b")), i) for i in several],
            )
            touched = ingest.write_feedback(
                connection,
                [(_record(Topic.FEEDBACK, next(offsets), encode_feedback(f, producer="b")), f) for f in given],
                NOW,
            )
            ingest.rederive(connection, touched, fresh, PLUGINS, NOW)


def interactions(learner: Learner, count: int, draw: random.Random) -> Iterator[Interaction]:
    words = ["tea", "cup", "walk", "rain", "book", "kind", "warm", "plain", "short", "help", "list", "three"]
    for number in range(count):
        group = f"list {number % GROUPS} kinds of tea"
        plain = make_interaction(f"{number:08d}", group=group, candidates=2)
        candidates = tuple(_said(learner, each, draw.choices(words, k=12)) for each in plain.candidates)
        tokens = learner.engine.encode((Message("user", group),)).tokens
        yield replace(plain, candidates=candidates, prompt_tokens=tokens)


def _said(learner: Learner, candidate: Candidate, words: list[str]) -> Candidate:
    text = " ".join(words)
    tokens = learner.base.encode_text(text)
    logprobs = (-1.0,) * len(tokens)
    return replace(
        candidate, text=text, displayed_text=text, tokens=tokens, logprobs_raw=logprobs, logprobs_sampled=logprobs
    )


def _act(interaction: Interaction, number: int, draw: random.Random, keen: float, others: int) -> Feedback:
    """The keen rater gives thumbs, the others choose; all of them like tea."""
    name = f"{interaction.interaction_id}-{number}"
    first, second = interaction.candidates
    liked = [each.text.count("tea") + draw.gauss(0, 0.5) for each in (first, second)]
    if draw.random() < keen:
        act: Thumbs | Choice = Thumbs(candidate_id=first.candidate_id, up=liked[0] > 1)
        return make_feedback(name, interaction.interaction_id, act, rater="keen")
    better, worse = (first, second) if liked[0] > liked[1] else (second, first)
    act = Choice(chosen_id=better.candidate_id, other_id=worse.candidate_id)
    return make_feedback(name, interaction.interaction_id, act, rater=f"rater-{draw.randrange(others)}")


def _record(topic: Topic, offset: int, value: bytes) -> Record:
    return Record(topic, 0, offset, b"", value, NOW)


def time_of_look(learner: Learner, settings: Settings) -> float:
    """Seconds of CPU of a look that finds too little and surveys anew what a turn would need; the counts are warm."""
    few = replace(learner, settings=settings.model_copy(update={"learn": settings.learn.model_copy(update=MANY)}))
    look(few, CHANNEL, Watch())
    began = time.process_time()
    look(few, CHANNEL, Watch())
    return time.process_time() - began


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
