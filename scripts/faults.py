"""Kills parts of a deployment under load and counts what was lost or counted twice: `make faults`.

Starts three Kafka brokers, PostgreSQL, two replicas of `plaudit serve` and two workers of `plaudit join`; lets people
ask and rate over gRPC; and meanwhile kills, stops and starts one part after another. The ledger of what was
acknowledged is this program's own: it knows the protos and nothing of the service's stores. In the end the feedback
topic is read by a plain Kafka client and the tables by plain SQL: every acknowledged act must be in both, and counted
once.

    python scripts/faults.py [--seconds 300] [--kills 0] [--seed 0] [--out FOLDER] [--tools FOLDER]

Needs Java, PostgreSQL's initdb, and the folder of tools with kafka/kafka (PLAUDIT_TOOLS, default ../shared/tools).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
import uuid6

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "faults."
CLIENTS = 4
REPLICAS = 2
WORKERS = 2
START_SECONDS = 180.0
SETTLE_SECONDS = 240.0
# A member of the join's group that is silent for longer loses its partitions.
BEYOND_SESSION_SECONDS = 14.0
JOIN_STEPS = tuple(f"join.{step}" for step in range(1, 10))
OUTBOX_STEPS = tuple(f"outbox.{step}" for step in range(1, 5))


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def say(text: str) -> None:
    """A line with the time since the start."""
    print(f"{time.monotonic() - BEGAN:7.1f}  {text}", flush=True)


BEGAN = time.monotonic()


class Kafka:
    """Three brokers, by the tool that starts them."""

    def __init__(self, tools: Path, folder: Path) -> None:
        self._tool, self._folder = tools / "kafka" / "kafka", folder
        self.bootstrap = ""

    def _run(self, *command: str) -> str:
        done = subprocess.run([self._tool, *command], capture_output=True, text=True, check=False, timeout=180)
        if done.returncode:
            raise RuntimeError(f"kafka {' '.join(command)}: {done.stderr}")
        return done.stdout

    def start(self) -> None:
        """Starts whatever is down."""
        printed = self._run("start", str(self._folder), "--nodes", "3")
        found = dict(line.removeprefix("export ").split("=", 1) for line in printed.splitlines() if "=" in line)
        self.bootstrap = found["PLAUDIT_TEST_KAFKA"].strip("'\"")

    def node(self, command: str, node: int) -> None:
        """kill, pause or resume one broker."""
        self._run(command, str(self._folder), str(node))

    def stop(self) -> None:
        """Ends all."""
        with contextlib.suppress(RuntimeError):
            self._run("stop", str(self._folder))


class Postgres:
    """A cluster of its own, on a free port of loopback."""

    def __init__(self, folder: Path) -> None:
        programs = [shutil.which("initdb"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))]
        found = [each for each in programs if each]
        if not found:
            raise SystemExit("faults: no initdb; install PostgreSQL")
        self._programs = Path(found[-1]).resolve().parent
        self._folder = folder
        self.port = free_port()
        self.url = f"postgresql+psycopg://plaudit@127.0.0.1:{self.port}/postgres"
        folder.mkdir()
        if os.getuid() == 0:  # it refuses to run as root
            shutil.chown(folder, "postgres")
        self._run("initdb", "-D", "data", "-U", "plaudit", "-A", "trust", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*user, str(self._programs / program), *arguments]
        with (self._folder.parent / "postgres.log").open("ab") as log:
            subprocess.run(command, cwd=self._folder, stdout=log, stderr=log, check=True, timeout=120)

    def start(self) -> None:
        """Starts it; its data are synced to disk as in production."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        self._run("pg_ctl", "-D", "data", "-w", "-l", "log", "start", "-o", options)

    def stop(self) -> None:
        """Ends it as a crash does."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("pg_ctl", "-D", "data", "-m", "immediate", "stop")


@dataclass
class Process:
    """One process of the deployment, through all its starts."""

    name: str
    arguments: list[str]
    folder: Path
    log: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self, fail_point: str = "") -> None:
        """Starts it, told to die at a fail point if one is named."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PLAUDIT_FAIL_POINT": fail_point}
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "plaudit.cli", *self.arguments], stdout=log, stderr=log, env=environment
            )

    @property
    def runs(self) -> bool:
        """Whether it is alive."""
        return self.child is not None and self.child.poll() is None

    def signal(self, number: int) -> None:
        """Sends a signal, if it is alive."""
        if self.runs:
            assert self.child is not None, "it runs"
            self.child.send_signal(number)

    def end(self) -> None:
        """SIGKILL, and waits."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()


@dataclass
class Ledger:
    """What the load generator was told, and nothing else."""

    acknowledged: dict[tuple[str, str], float] = field(default_factory=dict)
    sent: set[tuple[str, str]] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Load:
    """People who ask and rate, each act by somebody else, until told to stop."""

    def __init__(self, targets: list[str], ledger: Ledger, seed: int) -> None:
        self._targets, self._ledger = targets, ledger
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._people, args=(random.Random(f"{seed}:{n}"),)) for n in range(CLIENTS)
        ]

    def start(self) -> None:
        """Begins."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends, once each has its answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _people(self, chance: random.Random) -> None:
        from plaudit.v1 import assistant_pb2, assistant_pb2_grpc, feedback_pb2, feedback_pb2_grpc

        channels = [grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) for target in self._targets]
        asks = [assistant_pb2_grpc.AssistantServiceStub(channel) for channel in channels]
        gives = [feedback_pb2_grpc.FeedbackServiceStub(channel) for channel in channels]
        while not self._stop.is_set():
            request = assistant_pb2.GenerateRequest(domain="echo", tenant="default")
            request.messages.add(role="user", content=f"say {chance.randrange(1000)}")
            request.sampling.max_tokens = 2
            reply = self._try(chance, asks, lambda stub, request=request: stub.Generate(request, timeout=10.0), 1)
            for _ in range(chance.randrange(1, 6) if reply is not None else 0):
                ids = {"feedback_id": str(uuid6.uuid7()), "rater": str(uuid.uuid4())}
                act = feedback_pb2.Feedback(handle=reply.handle, **ids)
                act.thumbs.candidate_id, act.thumbs.up = reply.completions[0].candidate_id, chance.random() < 0.5
                key = (reply.interaction_id, act.feedback_id)
                with self._ledger.lock:
                    self._ledger.sent.add(key)
                submit = feedback_pb2.SubmitFeedbackRequest(feedback=act)
                said = self._try(chance, gives, lambda stub, it=submit: stub.SubmitFeedback(it, timeout=15.0), 4)
                if said is not None:
                    with self._ledger.lock:
                        self._ledger.acknowledged[key] = time.monotonic()
            if reply is None:
                time.sleep(0.2)
        for channel in channels:
            channel.close()

    def _try(self, chance: random.Random, stubs: list[Any], call: Callable[[Any], Any], times: int) -> Any:
        """The answer, after so many tries at most, each at a replica by chance; None if none was given."""
        for _ in range(times):
            began = time.monotonic()
            try:
                answer = call(chance.choice(stubs))
            except grpc.RpcError as error:
                with self._ledger.lock:
                    self._ledger.failures[error.code().name] += 1
                time.sleep(0.1)
                continue
            with self._ledger.lock:
                self._ledger.slowest = max(self._ledger.slowest, time.monotonic() - began)
            return answer
        return None


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
        for number in range(REPLICAS):
            port = free_port()
            self.targets.append(f"127.0.0.1:{port}")
            self.serve.append(self._process("serve", number, common | {"serve.port": str(port)}))
        self.join = [self._process("join", number, common) for number in range(WORKERS)]
        for process in (*self.serve, *self.join):
            process.start()
        self.wait_until_serving()

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
        for process in (*self.serve, *self.join):
            if not process.runs:
                steps = JOIN_STEPS if process in self.join else OUTBOX_STEPS
                point = f"{chance.choice(steps)}:{chance.randrange(1, 6)}" if points and chance.random() < 0.5 else ""
                if process.child is not None and process.child.returncode == 137:
                    self.kills += 1
                    self.happened["died at a step"] += 1
                process.start(point)

    def faults(self) -> dict[str, Callable[[random.Random], None]]:
        """What may happen, by name."""
        return {
            "kill serve": lambda chance: self._kill(chance.choice(self.serve)),
            "kill join": lambda chance: self._kill(chance.choice(self.join)),
            "kill broker": self._kill_broker,
            "stop join beyond its session": self._pause_join,
            "all brokers gone": self._brokers_gone,
            "database gone": self._database_gone,
        }

    def _kill(self, process: Process) -> None:
        if process.runs:
            process.end()
            self.kills += 1

    def _kill_broker(self, chance: random.Random) -> None:
        self.kafka.node("kill", chance.randrange(1, 4))
        self.kills += 1
        time.sleep(3.0)
        self.kafka.start()

    def _pause_join(self, chance: random.Random) -> None:
        process = chance.choice(self.join)
        process.signal(signal.SIGSTOP)
        time.sleep(BEYOND_SESSION_SECONDS)
        process.signal(signal.SIGCONT)

    def _brokers_gone(self, chance: random.Random) -> None:
        for node in (1, 2, 3):
            self.kafka.node("kill", node)
        self.kills += 3
        time.sleep(60 * self.scale)
        self.kafka.start()

    def _database_gone(self, chance: random.Random) -> None:
        self.postgres.stop()
        self.kills += 1
        time.sleep(30 * self.scale)
        self.postgres.start()

    def stop(self) -> None:
        """Ends everything."""
        for process in (*self.serve, *self.join):
            process.end()
        self.postgres.stop()
        self.kafka.stop()


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


def settle(deployment: Deployment, ledger: Ledger, chance: random.Random) -> None:
    """All parts are brought up, and everything acknowledged has time to arrive."""
    deployment.kafka.start()
    deployment.restart(points=False, chance=chance)
    deadline = time.monotonic() + SETTLE_SECONDS
    wanted = set(ledger.acknowledged)
    while time.monotonic() < deadline:
        deployment.restart(points=False, chance=chance)  # who still had a step to die at has died by now
        statuses, _ = in_store(deployment.postgres.url)
        if all(statuses.get(key) == "joined" for key in wanted):
            return
        time.sleep(1.0)


def campaign(deployment: Deployment, ledger: Ledger, arguments: argparse.Namespace) -> None:
    """One fault after another until the time is over, or so many were killed."""
    chance = random.Random(arguments.seed)
    faults = deployment.faults()
    # Each happens once at least, then by chance; the long ones are rare.
    order = sorted(faults, key=lambda _: chance.random())
    weights = [8, 8, 3, 1, 1, 1]
    load = Load(deployment.targets, ledger, arguments.seed)
    load.start()
    try:
        ends = time.monotonic() + arguments.seconds
        while time.monotonic() < ends or deployment.kills < arguments.kills:
            name = order.pop() if order else chance.choices(list(faults), weights)[0]
            faults[name](chance)
            deployment.happened[name] += 1
            say(f"{name}: {len(ledger.acknowledged)} acknowledged, {deployment.kills} kills")
            time.sleep(chance.uniform(0.5, 2.0))
            deployment.restart(points=True, chance=chance)
            time.sleep(chance.uniform(0.5, 4.0))
    finally:
        load.stop()
    say("load ended; everything is brought up")
    settle(deployment, ledger, chance)


def verdict(deployment: Deployment, ledger: Ledger) -> dict[str, Any]:
    """What became of what was acknowledged."""
    topic, (statuses, evidence) = in_topic(deployment.kafka.bootstrap), in_store(deployment.postgres.url)
    told = set(ledger.acknowledged)
    lost = {key for key in told if key not in topic or statuses.get(key) != "joined"}
    # Nobody sent it, or one act counts more than once. Records may lie in the topic twice; evidence may not.
    doubled = (set(statuses) - ledger.sent) | {key for key, rows in evidence.items() if rows != 1}
    return {
        "kills": deployment.kills,
        "acknowledged": len(told),
        "joined": sum(statuses.get(key) == "joined" for key in told),
        "lost": len(lost),
        "doubled": len(doubled),
        "records_sent_again": sum(times - 1 for times in topic.values()),
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
    return 0 if found["acknowledged"] and not found["lost"] and not found["doubled"] else 1


if __name__ == "__main__":
    sys.exit(main())
