"""Kills parts of a deployment under load and counts what was lost or counted twice: `make faults`.

Starts three Kafka brokers, PostgreSQL, two replicas of `plaudit serve`, three workers of `plaudit join` and two
learners; lets people ask and rate over gRPC; and meanwhile kills, stops and starts one part after another, fills a
disk, and takes brokers or database away. The ledger of what was acknowledged is this program's own: it knows the protos
and nothing of the service's stores. In the end the feedback topic is read by a plain Kafka client and the tables by
plain SQL: every acknowledged act must be in both, and counted once; every release must be whole, and no version and no
change of the channel missing or there twice.

    python scripts/faults.py [--seconds 300] [--kills 0] [--at-most SECONDS] [--seed 0] [--out FOLDER] [--tools FOLDER]

Needs Java, PostgreSQL's initdb, and the folder of tools with kafka/kafka (PLAUDIT_TOOLS, default ../shared/tools).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
from faults_load import Ledger, Load
from faults_parts import Kafka, Postgres, Process, SmallDisk, free_port, say

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "faults."
REPLICAS = 2
WORKERS = 3
LEARNERS = 2
CHANNEL = "echo/default"
START_SECONDS = 300.0
SETTLE_SECONDS = 600.0
# A member of the join's group that is silent for longer loses its partitions.
BEYOND_SESSION_SECONDS = 14.0
# A learner that is silent for longer loses its lease.
BEYOND_LEASE_SECONDS = 18.0
FULL_SECONDS = 6.0
# Outages and stops teach much and kill little: beyond one of each they get this share of the time.
LONG_SHARE = 0.2
RECOVERY_SECONDS, RECOVERED_ACTS = 60.0, 5
# Now and then nothing happens for a while, so that the join and the learners come to their later steps.
REST_EVERY, REST_SECONDS = 40, 20.0
JOIN_STEPS = tuple(f"join.{step}" for step in range(1, 10))
OUTBOX_STEPS = tuple(f"outbox.{step}" for step in range(1, 5))
LEARN_STEPS = (*(f"learn.{step}" for step in range(1, 8)), "release.1", "release.2")
# A turn of a tiny model in seconds; the gate decides by what people like, however far the model moves.
LEARNING = {
    "model.adapter_layers": "2", "reward.adapter": "false", "reward.heads": "4", "reward.layer": "1",
    "policy.iterations": "3", "policy.prompts": "12", "policy.samples": "4", "policy.minibatch": "16",
    "policy.max_tokens": "6", "policy.temperature": "1.0", "policy.lr": "0.03", "policy.update_kl": "0.3",
    "policy.kl_coef": "0", "policy.held_out": "0", "gate.prompts": "24", "gate.min_prompts": "8", "gate.samples": "2",
    "gate.kl_base": "100", "gate.kl_live": "100", "gate.distinct_ratio": "0", "gate.reward_comparisons": "60",
    "gate.reward_raters": "3", "learn.min_events": "100", "learn.poll_seconds": "0.5", "learn.backoff_seconds": "1",
    "learn.metrics_port": "0", "learn.nice": "0",
}  # fmt: skip


class Deployment:
    """All parts, and what may happen to them."""

    def __init__(self, tools: Path, folder: Path, seconds: float) -> None:
        self.folder = folder
        self.kafka, self.postgres = Kafka(tools, folder / "kafka"), Postgres(folder / "postgres")
        self.scale = min(1.0, seconds / 300)  # outages last a fifth of the campaign at most
        self.kills = 0
        self.happened: Counter[str] = Counter()
        self.serve: list[Process] = []
        self.join: list[Process] = []
        self.learn: list[Process] = []
        self.disk = SmallDisk(folder / "serve-0")
        self.targets: list[str] = []

    def start(self) -> None:
        """Brokers, database, a tiny model, two replicas and two workers; waits until the replicas answer."""
        from plaudit.testing.models import tiny_model

        self.kafka.start()
        self.postgres.start()
        model = tiny_model(self.folder / "model")
        common = {
            "model.path": str(model), "model.device": "cpu", "log.kind": "kafka",
            "log.kafka.bootstrap": self.kafka.bootstrap, "log.kafka.topic_prefix": PREFIX,
            "log.kafka.replication": "3", "log.kafka.partitions": "4", "store.url": self.postgres.url,
            "store.registry": str(self.folder / "registry"), "serve.metrics_port": "0", "join.metrics_port": "0",
            "serve.handle_keys": json.dumps({"k": "handle-key-of-the-fault-campaign"}),
            "serve.pseudonym_key": "pseudonym-key-of-the-fault-campaign", "plugins.allow": json.dumps(["echo"]),
        }  # fmt: skip
        common |= LEARNING
        self.disk.mount()
        for number in range(REPLICAS):
            port = free_port()
            self.targets.append(f"127.0.0.1:{port}")
            self.serve.append(self._process("serve", number, common | {"serve.port": str(port)}))
        self.join = [self._process("join", number, common) for number in range(WORKERS)]
        self.learn = [self._process("learn", number, common) for number in range(LEARNERS)]
        for process in self.all():
            process.start()
        self.wait_until_serving()

    def all(self) -> tuple[Process, ...]:
        """Every process of ours."""
        return (*self.serve, *self.join, *self.learn)

    def _process(self, command: str, number: int, settings: dict[str, str]) -> Process:
        name = f"{command}-{number}"
        pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        data = self.folder / name
        return Process(name, [command, "--data-dir", str(data), *pairs], data, self.folder / f"{name}.log")

    def wait_until_serving(self) -> None:
        """Until every replica says SERVING."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        deadline = time.monotonic() + START_SECONDS
        for target in self.targets:
            with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                while True:
                    with contextlib.suppress(grpc.RpcError):
                        if stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0).status == 1:
                            break
                    if time.monotonic() > deadline:
                        raise SystemExit(f"faults: no replica at {target}; see {self.folder}")
                    time.sleep(0.3)

    def restart(self, *, points: bool, chance: random.Random) -> None:
        """Starts again what is down; now and then told to die at a numbered step."""
        for process in self.all():
            if not process.runs:
                steps = {"serve": OUTBOX_STEPS, "join": JOIN_STEPS, "learn": LEARN_STEPS}[process.arguments[0]]
                passage = 1 if process in self.learn else chance.randrange(1, 6)
                point = f"{chance.choice(steps)}:{passage}" if points and chance.random() < 0.5 else ""
                if process.died_at_a_step:
                    self.kills += 1
                    self.happened["died at a step"] += 1
                process.start(point)

    def faults(self) -> dict[str, Callable[[random.Random], None]]:
        """What may happen, by name."""
        found: dict[str, Callable[[random.Random], None]] = {
            "kill serve": lambda chance: self._kill(chance.choice(self.serve)),
            "kill join": lambda chance: self._kill(chance.choice(self.join)),
            "kill learn": lambda chance: self._kill(chance.choice(self.learn)),
            "kill broker": self._kill_broker,
            "kill several at once": self._kill_several,
            "stop join beyond its session": lambda chance: pause(chance.choice(self.join), BEYOND_SESSION_SECONDS),
            "stop learn beyond its lease": lambda chance: pause(chance.choice(self.learn), BEYOND_LEASE_SECONDS),
            "all brokers gone": self._brokers_gone,
            "database gone": self._database_gone,
        }
        if self.disk.there:
            found["disk full while all brokers are gone"] = self._disk_full
        return found

    def _kill(self, process: Process) -> None:
        if process.runs:
            process.end()
            self.kills += 1

    def _kill_broker(self, chance: random.Random) -> None:
        if self.kafka.is_whole:
            self.kafka.lose_one(chance.randrange(1, 4))
            self.kills += 1

    def _kill_several(self, chance: random.Random) -> None:
        """Processes of any kind, and now and then a broker with them."""
        for process in chance.sample(self.all(), chance.randrange(2, 6)):
            self._kill(process)
        if chance.random() < 0.25:
            self._kill_broker(chance)

    def _kill_brokers(self) -> None:
        self.kafka.wait_until_whole()
        for node in (1, 2, 3):
            self.kafka.node("kill", node)
        self.kills += 3

    def _disk_full(self, chance: random.Random) -> None:
        self._kill_brokers()
        self.disk.fill()
        time.sleep(FULL_SECONDS)
        self.disk.free()
        self.kafka.start()

    def _brokers_gone(self, chance: random.Random) -> None:
        self._kill_brokers()
        time.sleep(60 * self.scale)
        self.kafka.start()

    def _database_gone(self, chance: random.Random) -> None:
        self.postgres.stop()
        self.kills += 1
        time.sleep(30 * self.scale)
        self.postgres.start()

    def stop(self) -> None:
        """Ends everything."""
        for process in self.all():
            process.end()
        self.postgres.stop()
        self.kafka.stop()
        self.disk.unmount()


def pause(process: Process, seconds: float) -> None:
    """Stops a process for a while; it does not notice."""
    process.signal(signal.SIGSTOP)
    time.sleep(seconds)
    process.signal(signal.SIGCONT)


def in_topic(bootstrap: str) -> Counter[tuple[str, str]]:
    """How often each act lies in the feedback topic, by a client that knows only Kafka and the protos."""
    from kafka import KafkaConsumer, TopicPartition
    from plaudit.v1 import events_pb2

    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    topic = f"{PREFIX}plaudit.feedback"
    partitions = [TopicPartition(topic, each) for each in sorted(consumer.partitions_for_topic(topic) or ())]
    consumer.assign(partitions)
    ends, found = consumer.end_offsets(partitions), Counter[tuple[str, str]]()
    while any(consumer.position(each) < ends[each] for each in partitions):
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                act = events_pb2.Envelope.FromString(record.value).feedback
                found[act.interaction_id, act.feedback.feedback_id] += 1
    consumer.close()
    return found


def in_store(url: str) -> tuple[dict[tuple[str, str], str], Counter[tuple[str, str]]]:
    """Status of each act and rows of evidence of each, by plain SQL."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        acts = "SELECT interaction_id, feedback_id, status FROM feedback WHERE NOT retraction"
        rows = connection.exec_driver_sql(acts)
        statuses = {(interaction, feedback): status for interaction, feedback, status in rows}
        rows = connection.exec_driver_sql("SELECT interaction_id, feedback_id FROM evidence")
        evidence = Counter((interaction, feedback) for interaction, feedback in rows)
    engine.dispose()
    return statuses, evidence


def in_registry(url: str) -> dict[str, int]:
    """Releases of the channel by state."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT state, count(*) FROM release GROUP BY state")
        found = {str(state): int(count) for state, count in rows}
    engine.dispose()
    return found


def broken_releases(url: str, registry: Path) -> list[str]:
    """What is wrong with the channel's releases: one that is not whole, a version or a change that is missing."""
    engine, wrong = sa.create_engine(url), []
    with engine.connect() as connection:

        def ask(query: str) -> list[Any]:
            return list(connection.execute(sa.text(query), {"channel": CHANNEL}))

        releases = ask("SELECT version, digest, state FROM release WHERE channel = :channel ORDER BY version")
        changes = ask("SELECT generation, live FROM channel_change WHERE channel = :channel ORDER BY generation")
        states = ask("SELECT generation, live FROM channel_state WHERE channel = :channel")
    engine.dispose()
    versions = [version for version, _, _ in releases]
    if versions != list(range(len(versions))):
        wrong.append(f"versions {versions}")
    for version, digest, state in releases:
        folder = registry / CHANNEL / f"{version}-{digest[:12]}"
        manifest = folder / "manifest.json"
        if not manifest.exists() or hashlib.sha256(manifest.read_bytes()).hexdigest() != digest:
            wrong.append(f"release {version}: no manifest of digest {digest}")
            continue
        for name, wanted in json.loads(manifest.read_text())["artifacts"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
                wrong.append(f"release {version}: {name} is damaged")
        if state in ("trained", "gated") and version:
            wrong.append(f"release {version} was left {state}")
    generations = [generation for generation, _ in changes]
    if generations and generations != list(range(generations[0], generations[0] + len(generations))):
        wrong.append(f"changes {generations}")
    live = [version for version, _, state in releases if state == "live"]
    if states and (live != [states[0][1]] or (changes and tuple(changes[-1]) != tuple(states[0]))):
        wrong.append(f"the channel is at {states[0]}, live are {live}, the last change is {changes[-1:]}")
    return wrong


def settle(deployment: Deployment, ledger: Ledger, chance: random.Random) -> None:
    """All parts are brought up, and everything acknowledged has time to arrive."""
    deployment.kafka.start()
    deployment.restart(points=False, chance=chance)
    deadline = time.monotonic() + SETTLE_SECONDS
    wanted = set(ledger.acknowledged)
    while time.monotonic() < deadline:
        deployment.restart(points=False, chance=chance)  # who still had a step to die at has died by now
        statuses, _ = in_store(deployment.postgres.url)
        left = broken_releases(deployment.postgres.url, deployment.folder / "registry")
        if all(statuses.get(key) == "joined" for key in wanted) and not left:
            return
        time.sleep(1.0)


class Choosing:
    """Which fault comes next: each once, then by chance, the long ones while they have had less than their share."""

    def __init__(self, names: Sequence[str], chance: random.Random) -> None:
        self._names, self._chance = list(names), chance
        self._first = sorted(names, key=lambda _: chance.random())
        self._began, self._on_long = time.monotonic(), 0.0

    def next(self) -> str:
        """The name of a fault."""
        if self._first:
            return self._first.pop()
        may_be_long = self._on_long < LONG_SHARE * (time.monotonic() - self._began)
        names = [name for name in self._names if may_be_long or self._weight(name) > 1]
        return self._chance.choices(names, [self._weight(name) for name in names])[0]

    def took(self, name: str, seconds: float) -> None:
        """A fault is over."""
        if self._weight(name) == 1:
            self._on_long += seconds

    @staticmethod
    def _weight(name: str) -> int:
        if name == "kill several at once":
            return 12
        return (2 if name == "kill broker" else 4) if name.startswith("kill") else 1


def until_acts_are_taken(ledger: Ledger) -> None:
    """Waits until people are answered again: what is killed next shall have been at work, however slow the machine."""
    deadline, before = time.monotonic() + RECOVERY_SECONDS, len(ledger.acknowledged)
    while len(ledger.acknowledged) < before + RECOVERED_ACTS and time.monotonic() < deadline:
        time.sleep(0.1)


def campaign(deployment: Deployment, ledger: Ledger, arguments: argparse.Namespace) -> None:
    """One fault after another until the time is over, or so many were killed."""
    chance = random.Random(arguments.seed)
    faults = deployment.faults()
    choosing = Choosing(list(faults), chance)
    load = Load(deployment.targets, ledger, arguments.seed)
    load.start()
    try:
        began, rounds = time.monotonic(), 0
        while (passed := time.monotonic() - began) < arguments.at_most and (
            passed < arguments.seconds or deployment.kills < arguments.kills
        ):
            name, since = choosing.next(), time.monotonic()
            faults[name](chance)
            choosing.took(name, time.monotonic() - since)
            deployment.happened[name] += 1
            say(f"{name}: {len(ledger.acknowledged)} acknowledged, {deployment.kills} kills")
            time.sleep(chance.uniform(0.3, 1.0))
            deployment.restart(points=True, chance=chance)
            until_acts_are_taken(ledger)
            time.sleep(chance.uniform(0.2, 2.0))
            rounds += 1
            if rounds % REST_EVERY == 0:
                time.sleep(REST_SECONDS)
    finally:
        load.stop()
    say("load ended; everything is brought up")
    settle(deployment, ledger, chance)


def verdict(deployment: Deployment, ledger: Ledger) -> dict[str, Any]:
    """What became of what was acknowledged."""
    topic, (statuses, evidence) = in_topic(deployment.kafka.bootstrap), in_store(deployment.postgres.url)
    releases = in_registry(deployment.postgres.url)
    told = set(ledger.acknowledged)
    # Each of these acts is one row of evidence: who says that it was joined and has none has lost it too.
    lost = {key for key in told if key not in topic or statuses.get(key) != "joined" or not evidence[key]}
    # Nobody sent it, or one act counts more than once. Records may lie in the topic twice; evidence may not.
    doubled = (set(statuses) - ledger.sent) | {key for key, rows in evidence.items() if rows != 1}
    return {
        "kills": deployment.kills,
        "acknowledged": len(told),
        "joined": sum(statuses.get(key) == "joined" for key in told),
        "lost": len(lost),
        "doubled": len(doubled),
        "records_sent_again": sum(times - 1 for times in topic.values()),
        "releases": releases,
        "broken_releases": broken_releases(deployment.postgres.url, deployment.folder / "registry"),
        "slowest_answer_seconds": round(ledger.slowest, 2),
        "refused": dict(ledger.failures),
        "happened": dict(deployment.happened),
        "examples": sorted(map(list, [*lost, *doubled]))[:5],
    }


@contextlib.contextmanager
def workplace(out: Path | None) -> Iterator[Path]:
    """A folder for everything; a temporary one is removed in the end."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=False)
        out.chmod(0o755)
        yield out.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="plaudit-faults-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def main() -> int:
    """Runs a campaign; exit code 0 if nothing was lost and nothing doubled."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="time under load and faults")
    parser.add_argument("--kills", type=int, default=0, help="go on until so many were killed")
    parser.add_argument("--at-most", type=float, default=math.inf, help="seconds after which --kills is not waited for")
    parser.add_argument("--seed", type=int, default=0, help="fixes the order of faults")
    parser.add_argument("--out", type=Path, default=None, help="new folder for logs and data, kept")
    tools = os.environ.get("PLAUDIT_TOOLS", str(ROOT / ".." / "shared" / "tools"))
    parser.add_argument("--tools", type=Path, default=Path(tools), help="folder with kafka/kafka")
    arguments = parser.parse_args()
    os.environ.pop("PLAUDIT_TOOLS", None)  # not a setting: the processes would refuse it
    if not (arguments.tools / "kafka" / "kafka").exists():
        raise SystemExit(f"faults: no {arguments.tools}/kafka/kafka to start brokers with")
    with workplace(arguments.out) as folder:
        deployment, ledger = Deployment(arguments.tools.resolve(), folder, arguments.seconds), Ledger()
        try:
            deployment.start()
            say("serves")
            campaign(deployment, ledger, arguments)
            found = verdict(deployment, ledger)
        finally:
            deployment.stop()
    print(json.dumps(found, indent=2))
    words = ("kills", "acknowledged", "joined", "lost", "doubled")
    print(", ".join(f"{word} {found[word]}" for word in words))
    wrong = found["lost"] or found["doubled"] or found["broken_releases"]
    return 0 if found["acknowledged"] and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
