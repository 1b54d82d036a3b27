"""What a demo run consists of: sizes, settings and command lines.

Enters: the options of `plaudit demo`. Leaves: plain values. Starts nothing.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from plaudit.errors import Misconfigured
from plaudit.types import Channel

TENANT = "default"
# Stages of a run, in words for people.
FIND = "find the simulated people"
PREPARE = "prepare the model"
START = "start the server and the join"
JUDGE = "judge every release on held-out prompts"
PICK = "ask the reward model alone, as a baseline"
REPLAY = "generate replies again on an idle engine"
AUDIT = "audit the log"
# Where each step of a turn begins, as a share of its time; `policy` is told by its iterations.
_TURN = {
    "freeze": 0.05,
    "reward": 0.07,
    "policy": 0.25,
    "measure": 0.8,
    "register": 0.95,
    "decide": 0.96,
    "promote": 0.97,
}
_DOING = {
    "freeze": "step 1 of 7: collect the evidence",
    "reward": "step 2 of 7: fit the reward model",
    "policy": "step 3 of 7: train the policy",
    "measure": "step 4 of 7: measure the candidate",
    "register": "step 5 of 7: keep it as a release",
    "decide": "step 6 of 7: ask the gate",
    "promote": "step 7 of 7: go live",
}
# A few visits have fewer acts than the mean, and every channel prompt is to be asked in every round.
_ROUND_MARGIN = 1.02


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Who asks and rates: facts of a population, as `plaudit populations` writes them."""

    name: str
    domain: str
    model: Literal["smollm2", "tiny"]
    max_tokens: int
    channel_prompts: int

    @property
    def channel(self) -> Channel:
        """The channel that they ask in."""
        return Channel(self.domain, TENANT)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Options of `plaudit demo`."""

    out: Path = Path("demo-report")
    domain: str = ""
    """Whose people ask and rate; empty is a domain whose people speak the language of the larger model."""
    quick: bool = False
    seed: int = 0
    log: Literal["sqlite", "kafka"] = "sqlite"
    keep_data: bool = False
    vllm: Path | None = None
    """The program `vllm`: a server of its own runs the model that is served; None: this package's engine does."""
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
    """Sizes of a run. Every round asks every channel prompt of its people at least once."""

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
    """Acts per reply before turn 1; about 45% of all acts become training events."""
    own_acts_per_interaction: float = 1.4
    """Acts per reply before each further turn, on the live release's own answers."""
    settle_seconds: float = 12.0
    """Traffic goes on for so long after a release went live."""
    replayed: int = 64
    judged_prompts: int = 0
    """Evaluation prompts that gold judges, half of them of kinds that the channel never saw; 0 takes all."""
    judged_samples: int = 4
    """Answers per prompt of each release."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each stage took on two cores, for estimates: "rate" and "learn" for each round, the others by name."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def acts(self, turn: int, people: People) -> int:
        """Acts of feedback before a turn (from 1)."""
        per_reply = self.acts_per_interaction if turn == 1 else self.own_acts_per_interaction
        return math.ceil(_ROUND_MARGIN * people.channel_prompts * per_reply)


_SECONDS = {PREPARE: 1.0, START: 6.0, AUDIT: 2.0}
FULL = Scale(
    judged_prompts=160,
    judged_samples=2,
    seconds={**_SECONDS, "rate": 130, "learn": 900, JUDGE: 200, PICK: 40, REPLAY: 60},
    settings={
        # One wide lane decodes for everybody while people rate; the narrow ones serve the traffic during training.
        "engine": {"widths": [4, 16, 128]},
        # The base agrees with one false claim in fourteen, and a policy that moves for votes does so more often (docs/
        # results.md): a quarter of what is asked practises conduct, and each second state is compared.
        "policy": {"kl_coef": 0.1, "kl_target": 3.0, "compared": 5, "practice_share": 0.25},
    },
)
QUICK = Scale(
    acts_per_interaction=2.9,
    settle_seconds=6.0,
    seconds={**_SECONDS, "rate": 7, "learn": 32, JUDGE: 12, PICK: 7, REPLAY: 6},
    settings={
        "model": {"adapter_layers": 4},
        # Answers of a dozen words: a few nats are far. A policy that goes further gains reward and loses variety, so
        # each state on the way is compared: the gate would often refuse the last one.
        "policy": {
            **{"iterations": 6, "compared": 6, "kl_coef": 0.05, "kl_target": 2.5},
            # The toy language makes no claims: to practise there would only take rollouts away from what people ask.
            "practice_share": 0.0,
            # Choices need no decoding: with few iterations each sees many prompts, and may move far.
            **{"choice_prompts": 128, "choice_update_kl": 1.0, "label_coef": 1.0},
        },
        "gate": {"prompts": 60, "min_prompts": 40, "reward_comparisons": 60},
    },
)


SCALES: Mapping[str, Scale] = {"smollm2": FULL, "tiny": QUICK}


def scale(people: People) -> Scale:
    """Sizes of a run with these people: by the model whose language they speak."""
    return SCALES[people.model]


def rating(turn: int) -> str:
    """The stage before a turn (from 1)."""
    return "people ask, and rate the base's answers" if turn == 1 else f"people rate on, round {turn}"


def learning(turn: int) -> str:
    """A turn's stage."""
    return f"turn {turn}: learn from the feedback"


def stages(scale: Scale) -> list[tuple[str, float]]:
    """Every stage after the people were found, with the seconds that it is expected to take."""
    rounds = [
        stage
        for turn in range(1, scale.turns + 1)
        for stage in ((rating(turn), scale.seconds["rate"]), (learning(turn), scale.seconds["learn"]))
    ]
    before, after = (PREPARE, START), (JUDGE, PICK, REPLAY, AUDIT)
    return [
        *((name, scale.seconds[name]) for name in before),
        *rounds,
        *((name, scale.seconds[name]) for name in after),
    ]


def turn_part(learner: Mapping[str, Any]) -> tuple[float, str]:
    """How much of a turn is done, and its step in words, from what the learner wrote into its file."""
    name, detail = str(learner.get("name", "")), str(learner.get("detail", ""))
    begin, following = _TURN.get(name, 0.0), list(_TURN).index(name) + 1 if name in _TURN else len(_TURN)
    end = list(_TURN.values())[following] if following < len(_TURN) else 1.0
    done = re.match(r"iteration (\d+)/(\d+)", detail)
    share = int(done[1]) / int(done[2]) if done and name == "policy" else 0.0
    return begin + (end - begin) * share, ": ".join(part for part in (_DOING.get(name, ""), detail) if part)


def people_of(described: Sequence[Mapping[str, Any]]) -> list[People]:
    """Populations as `plaudit populations` writes them."""
    fields = [each.name for each in dataclasses.fields(People)]
    return [People(**{name: each[name] for name in fields}) for each in described]


def choose_people(described: Sequence[Mapping[str, Any]], options: DemoOptions) -> People:
    """The population of the run; raises Misconfigured if the domain has none.

    The tiny model's people if the run is to be quick, else the larger model's if the domain has any.
    """
    installed = people_of(described)
    # The larger model's first: sorting is stable, so that the order of names decides between equals.
    ordered = sorted(installed, key=lambda people: people.model != "smollm2")
    domain = options.domain or next((people.domain for people in ordered), "")
    found = [people for people in ordered if people.domain == domain]
    if not found:
        known = ", ".join(sorted({people.domain for people in installed})) or "none"
        raise Misconfigured(
            f"no simulated people of the domain {domain!r} are installed; domains with people: {known}", domain=domain
        )
    return found[-1] if options.quick else found[0]


def cache_dir() -> Path:
    """Where models are kept between runs: PLAUDIT_CACHE, else ~/.cache/plaudit."""
    return Path(os.environ.get("PLAUDIT_CACHE") or Path.home() / ".cache" / "plaudit")


def threads() -> int:
    """CPU threads of each process that runs the model."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings_table(options: DemoOptions, people: People, model: Path) -> dict[str, Any]:
    """Contents of the settings file."""
    table: dict[str, Any] = {
        "data_dir": str(options.data_dir.absolute()),
        "model": {"path": str(model.absolute()), "threads": threads()},
        # Port 0 takes a free one, which the service writes into its data directory.
        "serve": {"host": "127.0.0.1", "port": 0, "metrics_port": 0},
        "join": {"metrics_port": 0},
        "log": {"kind": options.log},
        # What the states of each turn said is judged at the end, when there is nothing left to learn.
        "learn": {"seed": options.seed, "min_events": 1, "metrics_port": 0, "compared_turns": scale(people).turns},
        "plugins": {"allow": [people.domain]},
        # What the people ask for: callers, training and gate use one length.
        "policy": {"max_tokens": people.max_tokens},
    }
    if options.log == "kafka":
        # Topics of its own: a demo must not read another run's records.
        table["log"]["kafka"] = {"topic_prefix": f"demo-{secrets.token_hex(4)}."}
    for section, values in scale(people).settings.items():
        table[section] = {**table.get(section, {}), **values}
    return table


def common(options: DemoOptions) -> list[str]:
    """Arguments that every process of the demo gets."""
    where = ["--config", str(options.config), "--data-dir", str(options.data_dir.absolute())]
    return [*where, *(part for item in options.overrides for part in ("--set", item))]
