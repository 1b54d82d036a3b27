"""What a demo run consists of: sizes, settings and command lines.

Enters: the options of `plaudit demo`. Leaves: plain values. Starts nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plaudit.types import Channel

CHANNEL = Channel("instruction", "default")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Options of `plaudit demo`."""

    out: Path = Path("demo-report")
    quick: bool = False
    seed: int = 0
    log: Literal["sqlite", "kafka"] = "sqlite"
    keep_data: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def data_dir(self) -> Path:
        """Directory shared by the demo's processes."""
        return self.out / "data"

    @property
    def config(self) -> Path:
        """Settings file of the demo's processes."""
        return self.out / "plaudit.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Sizes of a run."""

    model: Literal["smollm2", "tiny"]
    population: str
    first_acts: int
    """Acts on the base's answers, before turn 1; about 45% of them become training events."""
    own_acts: int
    """Acts on the live release's own answers, before each further turn."""
    turns: int = 2
    people: int = 80
    """Requests that people keep open while they rate; fewer leave the engine's batch empty."""
    light_people: int = 1
    """Requests open during training: traffic goes on, and most of two cores is left to the learner."""
    light_pause: float = 8.0
    """Seconds between a reply and the next question of the same person during training."""
    swap_people: int = 40
    """Requests open while a release goes live: replies that span the swap are replayed afterwards."""
    own_base_share: float = 0.25
    """Share of comparisons of own answers in which one side is the base."""
    acts_per_interaction: float = 3.2
    """Acts per reply before turn 1; the channel's prompts times this are less than first_acts: each prompt is asked."""
    own_acts_per_interaction: float = 1.4
    """Acts per reply before each further turn; the same holds with own_acts, so each prompt is asked per release."""
    settle_seconds: float = 12.0
    """Traffic goes on for so long after a release went live."""
    replayed: int = 64
    judged_prompts: int = 0
    """Evaluation prompts that gold judges, half of them of kinds that the channel never saw; 0 takes all."""
    judged_samples: int = 4
    """Answers a prompt of each release."""
    settings: Mapping[str, Any] = field(default_factory=dict)


FULL = Scale(
    model="smollm2",
    population="instruction",
    first_acts=1780,
    own_acts=800,
    judged_prompts=160,
    judged_samples=2,
    settings={
        # One wide lane decodes for everybody while people rate; the narrow ones serve the traffic during training.
        "engine": {"widths": [4, 16, 128]},
        # What the population asks for (its max_tokens): callers, training and gate use one length.
        "policy": {"max_tokens": 32},
    },
)
QUICK = Scale(
    model="tiny",
    population="instruction-tiny",
    first_acts=900,
    own_acts=450,
    acts_per_interaction=2.9,
    settle_seconds=6.0,
    settings={
        "model": {"adapter_layers": 4},
        # Answers of a dozen words: a few nats are far. A policy that goes further gains reward and loses variety, so
        # each state on the way is compared: the gate would often refuse the last one.
        "policy": {"max_tokens": 32, "iterations": 6, "compared": 6, "kl_coef": 0.05, "kl_target": 2.5},
        "gate": {"prompts": 60, "min_prompts": 40, "reward_comparisons": 60},
    },
)


def scale(options: DemoOptions) -> Scale:
    """Sizes of this run."""
    return QUICK if options.quick else FULL


def cache_dir() -> Path:
    """Where models are kept between runs: PLAUDIT_CACHE, else ~/.cache/plaudit."""
    return Path(os.environ.get("PLAUDIT_CACHE") or Path.home() / ".cache" / "plaudit")


def threads() -> int:
    """CPU threads of each process that runs the model."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings_table(options: DemoOptions, model: Path) -> dict[str, Any]:
    """Contents of the settings file."""
    table: dict[str, Any] = {
        "data_dir": str(options.data_dir.absolute()),
        "model": {"path": str(model.absolute()), "threads": threads()},
        # Port 0 takes a free one, which the service writes into its data directory.
        "serve": {"host": "127.0.0.1", "port": 0, "metrics_port": 0},
        "log": {"kind": options.log},
        "learn": {"seed": options.seed, "min_events": 1},
        "plugins": {"allow": [CHANNEL.domain]},
    }
    if options.log == "kafka":
        # Topics of its own: a demo must not read another run's records.
        table["log"]["kafka"] = {"topic_prefix": f"demo-{secrets.token_hex(4)}."}
    for section, values in scale(options).settings.items():
        table[section] = {**table.get(section, {}), **values}
    return table


def common(options: DemoOptions) -> list[str]:
    """Arguments that every process of the demo gets."""
    where = ["--config", str(options.config), "--data-dir", str(options.data_dir.absolute())]
    return [*where, *(part for item in options.overrides for part in ("--set", item))]
