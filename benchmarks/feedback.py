"""Measures the speed of feedback, from the call to the evidence, against the barest program that does the same.

One run, the two sides of each ratio in alternation, so that drift of the machine meets both alike:

    unary     SubmitFeedback to Kafka, and to the embedded log, against an empty call behind the same interceptors, and
              a health check; the client is ghz, an independent load generator
    bulk      StreamFeedback to Kafka against a bare producer of kafka-python that sends the same records
    join      the join on Kafka against a bare consumer that inserts the same records into two tables
    log       appends to the embedded log against inserts into SQLite with one fsync each
    growth    time of the join and size of its store by number of acts

Prints and writes JSON: of each side the rates of all rounds with their median, of each ratio the median of the rounds'
ratios with the lowest and the highest. Kafka: PLAUDIT_TEST_KAFKA, else one that the folder of tools starts (Java).
The join's store: PLAUDIT_TEST_POSTGRES (a server whose user may create databases), else SQLite.

On a machine that does other work besides, what a call or a record costs the processor says more than the rates.

    python benchmarks/feedback.py [--only unary,bulk,join,log,growth] [--rounds 5] [--records 10000]
        [--events 10000,100000] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import math
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
from google.protobuf.json_format import MessageToDict
from kafka import KafkaConsumer, KafkaProducer
from plaudit.access.admission import Admission
from plaudit.access.limits import Limits
from plaudit.eventlog import EventLog, Topic, open_log, open_serving_log
from plaudit.eventlog.codec import encode_feedback, encode_interaction
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.garbage import JOIN_OBJECTS, set_aside
from plaudit.ids import new_id
from plaudit.metrics import Metrics
from plaudit.plugins import guard, load_plugins
from plaudit.serving.acts import Acts
from plaudit.serving.feedback import FeedbackServicer
from plaudit.serving.handle import HandleClaims, HandleSigner
from plaudit.serving.redacting import Redactor
from plaudit.serving.server import _grpc_server
from plaudit.settings import JoinSettings, KafkaSettings, LogSettings, Settings
from plaudit.store import sqlite
from plaudit.testing.evidence import PlainDomain, make_feedback, make_interaction
from plaudit.types import Thumbs
from plaudit.v1 import feedback_pb2, feedback_pb2_grpc
from prometheus_client import CollectorRegistry

ROOT = Path(__file__).resolve().parent.parent
CALLERS = 16
REQUESTS = 2_000  # different acts that ghz sends, over and over
TOGETHER = 250  # acts of one message
PARTITIONS = 4
APPENDS = 800
HANDLE_KEY, PERSON_KEY = b"handle-key-of-the-benchmark-of-feedback", b"person-key-of-the-benchmark"
SUBMIT, HEALTH = "plaudit.v1.FeedbackService/SubmitFeedback", "grpc.health.v1.Health/Check"
# ghz cannot read it from a server that offers reflection in its first version only.
HEALTH_PROTO = """syntax = "proto3"; package grpc.health.v1;
message HealthCheckRequest { string service = 1; } message HealthCheckResponse { int32 status = 1; }
service Health { rpc Check(HealthCheckRequest) returns (HealthCheckResponse); }
"""


def kafka_settings(folder: Path, bootstrap: str, prefix: str) -> Settings:
    """Settings of a deployment on these brokers."""
    kafka = KafkaSettings(bootstrap=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    return Settings(data_dir=folder, log=LogSettings(kind="kafka", kafka=kafka))


def requests(count: int) -> list[feedback_pb2.Feedback]:
    """Acts under handles of their own, each by somebody else."""
    signer, found = HandleSigner({"k": HANDLE_KEY}, "k", 86_400.0), []
    expires = signer.expiry(dt.datetime.now(dt.UTC))
    for _ in range(count):
        candidate = str(uuid.uuid4())
        claims = HandleClaims(
            tenant="default", domain="echo", interaction_id=new_id(), candidate_ids=(candidate,),
            answer="0" * 32, rater="", expires_at=expires,
        )  # fmt: skip
        act = feedback_pb2.Feedback(handle=signer.sign(claims), feedback_id=str(uuid.uuid4()), rater=str(uuid.uuid4()))
        act.thumbs.candidate_id, act.thumbs.up = candidate, True
        found.append(act)
    return found


class Empty(feedback_pb2_grpc.FeedbackServiceServicer):  # type: ignore[misc]
    """Answers at once."""

    def SubmitFeedback(self, request: Any, context: Any) -> Any:
        """Nothing."""
        return feedback_pb2.SubmitFeedbackResponse()


def serve(folder: Path, bootstrap: str, prefix: str) -> None:
    """The servers of this benchmark in one process, until standard input ends; prints their ports."""
    from grpc_health.v1 import health, health_pb2_grpc

    embedded = Settings(data_dir=folder)
    logs: dict[str, EventLog] = {"embedded": open_log(embedded)}
    if bootstrap:
        logs["kafka"] = open_serving_log(kafka_settings(folder, bootstrap, prefix))
    plugins, signer = load_plugins(("echo",)), HandleSigner({"k": HANDLE_KEY}, "k", 86_400.0)
    ports: dict[str, int] = {}
    servers = []
    for name in ("empty", *logs):
        metrics, limits = Metrics(CollectorRegistry()), Limits(embedded.access.limits)
        server = _grpc_server(embedded, metrics, Admission(limits))
        redactor = Redactor(lambda channel: embedded.for_channel(channel).privacy.redact, metrics)
        acts = Acts(plugins, signer, PERSON_KEY, limits, redactor)
        servicer = Empty()
        if name != "empty":
            servicer = FeedbackServicer(acts, logs[name], metrics, limits, stream_seconds=600.0)
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        ports[name] = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
    set_aside()  # as `plaudit serve` does
    print(json.dumps(ports), flush=True)
    sys.stdin.read()
    for server in servers:
        server.stop(1.0).wait()
    for each in logs.values():
        each.close()


@dataclass
class Servers:
    """The process of the servers, and their ports by name."""

    pid: int
    ports: dict[str, int]

    def cpu_seconds(self) -> float:
        """Time that the process has computed; 0 where the system does not tell it (not Linux)."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0


@contextlib.contextmanager
def served(folder: Path, bootstrap: str, prefix: str) -> Iterator[Servers]:
    """The servers in a process of their own, as ports by name."""
    command = [sys.executable, __file__, "--serve", str(folder), bootstrap, prefix]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None, "it is a pipe"
    assert child.stdout is not None, "it is a pipe"
    try:
        yield Servers(child.pid, json.loads(child.stdout.readline()))
    finally:
        child.stdin.close()
        child.wait(30)
        child.stdout.close()


def alternated(sides: Mapping[str, Callable[[], float]], rounds: int, ratios: Mapping[str, tuple[str, str]]) -> Any:
    """Rates of each side by round (a first round warms up), and the ratios of some to others, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, measure in sides.items():
            rate = measure()
            print(f"  {name}: {rate:,.0f} per second", file=sys.stderr, flush=True)
            if number:
                rates[name].append(rate)
    compared = {
        name: [a / b for a, b in zip(rates[one], rates[other], strict=True)] for name, (one, other) in ratios.items()
    }
    return {
        "per_second": {name: spread(each, 0) for name, each in rates.items()},
        "ratio": {name: spread(each, 3) for name, each in compared.items()},
    }


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Median, lowest and highest."""
    facts = {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, digits) for name, value in facts.items()}


def unary(tools: Path, folder: Path, servers: Servers, rounds: int, seconds: float) -> Any:
    """Calls per second of ghz with CALLERS callers, and what each costs the server.

    On a machine that does other work besides, the cost says more than the rate.
    """
    ports, costs = servers.ports, defaultdict[str, list[float]](list)
    data, health = folder / "requests.json", folder / "health.proto"
    health.write_text(HEALTH_PROTO)
    data.write_text(json.dumps([{"feedback": MessageToDict(act)} for act in requests(REQUESTS)]))

    def load(name: str, server: str, call: str, *more: str) -> float:
        port, before = ports[server], servers.cpu_seconds()
        command = [str(tools / "bin" / "ghz"), "--insecure", "--call", call, "-c", str(CALLERS), "-z", f"{seconds}s"]
        command += ["--duration-stop", "wait", "--disable-template-data", "--disable-template-functions", "-O", "json"]
        if call == HEALTH:
            command += ["--proto", str(health)]
        else:
            command += ["-i", str(ROOT / "protos"), "--proto", str(ROOT / "protos/plaudit/v1/feedback.proto")]
        done = subprocess.run([*command, *more, f"127.0.0.1:{port}"], capture_output=True, text=True, check=True)
        said = json.loads(done.stdout)
        if set(said["statusCodeDistribution"]) != {"OK"}:
            raise SystemExit(f"feedback: {call} was answered {said['statusCodeDistribution']}")
        costs[name].append(1e6 * (servers.cpu_seconds() - before) / said["count"])
        return float(said["rps"])

    sides = {
        "health": lambda: load("health", "embedded", HEALTH, "-d", "{}"),
        "empty": lambda: load("empty", "empty", SUBMIT, "-d", "{}"),
        "embedded": lambda: load("embedded", "embedded", SUBMIT, "-D", str(data)),
    }
    ratios = {"embedded / empty": ("embedded", "empty"), "embedded / health": ("embedded", "health")}
    if "kafka" in ports:
        sides["kafka"] = lambda: load("kafka", "kafka", SUBMIT, "-D", str(data))
        ratios |= {"kafka / empty": ("kafka", "empty"), "kafka / health": ("kafka", "health")}
    found = alternated(sides, rounds, ratios)
    return found | {"cpu_microseconds_per_call": {name: spread(each[1:], 0) for name, each in costs.items()}}


def costed(
    costs: dict[str, list[float]], name: str, clock: Callable[[], float], count: int, measure: Callable[[], float]
) -> Callable[[], float]:
    """The measure, which also notes what one of `count` records cost by this clock of a processor (microseconds)."""

    def measured() -> float:
        before = clock()
        rate = measure()
        costs[name].append(1e6 * (clock() - before) / count)
        return rate

    return measured


def worked(costs: Mapping[str, list[float]]) -> dict[str, Any]:
    """What each side cost a record, without the first round, which warms up."""
    return {"cpu_microseconds_per_record": {name: spread(each[1:], 0) for name, each in costs.items()}}


def bulk(bootstrap: str, prefix: str, servers: Servers, rounds: int, count: int) -> Any:
    """Acts per second of one StreamFeedback, and of a producer that sends the records that it makes.

    What the server's process computes is compared with what the bare producer's does.
    """
    acts, port, costs = requests(count), servers.ports["kafka"], defaultdict[str, list[float]](list)
    one_by_one = [feedback_pb2.StreamFeedbackRequest(feedback=act) for act in acts]
    together = [
        feedback_pb2.StreamFeedbackRequest(acts=acts[first : first + TOGETHER]) for first in range(0, count, TOGETHER)
    ]
    records = []
    for number in range(count):
        act = make_feedback(acts[number].feedback_id, str(uuid.uuid4()), Thumbs(str(uuid.uuid4()), True))
        records.append((act.interaction_id.encode(), encode_feedback(act, producer="benchmark")))

    def stream(items: list[feedback_pb2.StreamFeedbackRequest]) -> float:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
            grpc.channel_ready_future(channel).result(10)
            began = time.perf_counter()
            answers = stub.StreamFeedback(iter(items), timeout=300)
            accepted = sum(one.accepted for answer in answers for one in answer.answers or (answer,))
            took = time.perf_counter() - began
        if accepted != count:
            raise SystemExit(f"feedback: {accepted} of {count} items were accepted")
        return count / took

    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    topic = f"{prefix}{Topic.FEEDBACK}"
    producer.partitions_for(topic)

    def bare() -> float:
        began = time.perf_counter()
        sent = [producer.send(topic, key=key, value=value) for key, value in records]
        for each in sent:
            each.get(60)
        return count / (time.perf_counter() - began)

    try:
        sides = {
            "bare": costed(costs, "bare", time.process_time, count, bare),
            "together": costed(costs, "together", servers.cpu_seconds, count, lambda: stream(together)),
            "one by one": costed(costs, "one by one", servers.cpu_seconds, count, lambda: stream(one_by_one)),
        }
        ratios = {f"{name} / bare": (name, "bare") for name in sides if name != "bare"}
        return alternated(sides, rounds, ratios) | worked(costs)
    finally:
        producer.close()


def fill(log: EventLog, acts: int) -> None:
    """Interactions with two acts each."""
    for first in range(0, acts // 2, 1000):
        names = [f"{number:036d}" for number in range(first, min(first + 1000, acts // 2))]
        heads = [make_interaction(name) for name in names]
        log.append_many(
            Topic.INTERACTIONS,
            [(each.interaction_id, encode_interaction(each, producer="benchmark")) for each in heads],
        )
        given = [
            make_feedback(f"{name}-{who}", name, Thumbs("a", True), rater=f"{who}-{name[-4:]}")
            for name in names
            for who in "ab"
        ]
        log.append_many(
            Topic.FEEDBACK, [(each.interaction_id, encode_feedback(each, producer="benchmark")) for each in given]
        )


def joined(log: EventLog, url: str, records: int, batch: int) -> float:
    """Seconds of the join from its first batch until it has read so many records."""
    store = EvidenceStore(url)
    join = Join(log, store, guard([PlainDomain()]), JoinSettings(batch_records=batch))
    began, found = 0.0, 0
    while found < records:
        before = time.perf_counter()
        read = join.run_once(1.0)
        if read and not found:
            began = before
        found += read
    took = time.perf_counter() - began
    join.close()
    store.close()
    return took


def join(bootstrap: str, folder: Path, rounds: int, acts: int) -> Any:
    """Records per second of the join, and of a consumer that inserts what it reads; a new store for each."""
    prefix = f"join{uuid.uuid4().hex[:8]}."
    log, batch = open_log(kafka_settings(folder, bootstrap, prefix)), JoinSettings().batch_records
    fill(log, acts)
    records, costs = acts + acts // 2, defaultdict[str, list[float]](list)

    def bare() -> float:
        with database(folder) as url:
            return records / consumed(bootstrap, prefix, url, records, batch)

    def full() -> float:
        with database(folder) as url:
            return records / joined(log, url, records, batch)

    try:
        sides = {
            name: costed(costs, name, time.process_time, records, side)
            for name, side in (("bare", bare), ("join", full))
        }
        found = alternated(sides, rounds, {"join / bare": ("join", "bare")}) | worked(costs)
    finally:
        log.close()
    return {"store": "postgresql" if os.environ.get("PLAUDIT_TEST_POSTGRES") else "sqlite", **found}


def consumed(bootstrap: str, prefix: str, url: str, records: int, batch: int) -> float:
    """Seconds of a bare consumer from its first batch: one insert for each record, one commit for each batch."""
    metadata = sa.MetaData()
    tables = {
        prefix + topic: sa.Table(
            topic.replace(".", "_"), metadata, sa.Column("key", sa.String, primary_key=True),
            sa.Column("place", sa.BigInteger, primary_key=True), sa.Column("value", sa.LargeBinary),
        )
        for topic in (Topic.INTERACTIONS, Topic.FEEDBACK)
    }  # fmt: skip
    store = EvidenceStore(url)  # opened as the join opens it, so that both write to disk alike
    engine = store.database.engine
    metadata.create_all(engine)
    consumer = KafkaConsumer(
        *tables, bootstrap_servers=bootstrap, group_id=uuid.uuid4().hex, auto_offset_reset="earliest",
        enable_auto_commit=False,
    )  # fmt: skip
    began, found = 0.0, 0
    while found < records:
        before = time.perf_counter()
        batches = consumer.poll(timeout_ms=1000, max_records=batch)
        if not batches:
            continue
        began = began or before
        with store.database.writing() as connection:
            for partition, messages in batches.items():
                rows = [{"key": each.key.decode(), "place": each.offset, "value": each.value} for each in messages]
                connection.execute(sa.insert(tables[partition.topic]), rows)
                found += len(rows)
    took = time.perf_counter() - began
    consumer.close(autocommit=False)
    store.close()
    return took


@contextlib.contextmanager
def database(folder: Path) -> Iterator[str]:
    """URL of an empty database."""
    name, server_url = f"benchmark_{uuid.uuid4().hex[:8]}", os.environ.get("PLAUDIT_TEST_POSTGRES")
    if not server_url:
        yield f"sqlite:///{folder / name}.sqlite"
        return
    server = sa.create_engine(server_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield sa.make_url(server_url).set(database=name).render_as_string(hide_password=False)
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


def log(folder: Path, rounds: int) -> Any:
    """Appends per second by one caller and by CALLERS, and inserts with a commit each by one connection."""
    key, value = str(uuid.uuid4()), encode_feedback(make_feedback("f", "i", Thumbs("a", True)), producer="benchmark")
    ours = SqliteEventLog(folder / "appends.sqlite")
    plain = sqlite3.connect(folder / "plain.sqlite", isolation_level=None)
    sqlite.prepare(plain, 10.0)
    plain.execute("CREATE TABLE records (place INTEGER PRIMARY KEY, key TEXT, value BLOB)")

    def appends(callers: int) -> float:
        def append() -> None:
            for _ in range(APPENDS // callers):
                ours.append(Topic.FEEDBACK, key, value)

        threads = [threading.Thread(target=append) for _ in range(callers)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return APPENDS / (time.perf_counter() - began)

    def inserts() -> float:
        began = time.perf_counter()
        for _ in range(APPENDS):
            plain.execute("INSERT INTO records (key, value) VALUES (?, ?)", (key, value))
        return APPENDS / (time.perf_counter() - began)

    sides = {"bare": inserts, "1 caller": lambda: appends(1), f"{CALLERS} callers": lambda: appends(CALLERS)}
    ratios = {f"{name} / bare": (name, "bare") for name in sides if name != "bare"}
    try:
        return alternated(sides, rounds, ratios)
    finally:
        ours.close()
        plain.close()


def growth(folder: Path, counts: list[int]) -> Any:
    """Seconds of the join and bytes of its store by number of acts, on SQLite and the embedded log."""
    rows = []
    for acts in counts:
        place = folder / f"growth-{acts}"
        place.mkdir()
        events = SqliteEventLog(place / "log.sqlite")
        fill(events, acts)
        before = time.process_time()
        seconds = joined(events, f"sqlite:///{place / 'store.sqlite'}", acts + acts // 2, JoinSettings().batch_records)
        computed = time.process_time() - before
        events.close()
        size = (place / "store.sqlite").stat().st_size
        rows.append(
            {
                "acts": acts,
                "seconds": round(seconds, 2),
                "cpu_seconds": round(computed, 2),
                "bytes": size,
                "bytes_per_act": round(size / acts),
            }
        )
        print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    slopes = {
        name: round(math.log(rows[-1][name] / rows[0][name]) / math.log(counts[-1] / counts[0]), 3)
        for name in ("seconds", "cpu_seconds", "bytes")
        if len(counts) > 1
    }
    return {"rows": rows, "slope": slopes}


@contextlib.contextmanager
def brokers(tools: Path, folder: Path) -> Iterator[str]:
    """Bootstrap servers: those that are given, else one broker of our own; empty if there is none."""
    given, tool = os.environ.get("PLAUDIT_TEST_KAFKA", ""), tools / "kafka" / "kafka"
    if given or not tool.exists():
        yield given
        return
    script = f'eval "$({tool} start {folder})" && printf %s "$PLAUDIT_TEST_KAFKA"'
    try:
        yield subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([tool, "stop", folder], check=False, capture_output=True)


def main() -> None:
    """Measures what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = ("unary", "bulk", "join", "log", "growth")
    parser.add_argument("--only", default=",".join(parts), help="parts to measure, comma separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round of unary calls")
    parser.add_argument("--records", type=int, default=10_000, help="acts of bulk and join; interactions half as many")
    parser.add_argument("--events", default="10000,100000", help="numbers of acts whose join is measured")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "feedback.json")
    tools = os.environ.pop("PLAUDIT_TOOLS", str(ROOT / ".." / "shared" / "tools"))  # not a setting of Plaudit
    parser.add_argument("--tools", type=Path, default=Path(tools), help="folder with kafka/kafka and bin/ghz")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    set_aside(JOIN_OBJECTS)  # as `plaudit join` does, for the bare consumer too
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    prefix = f"bench{uuid.uuid4().hex[:8]}."
    with tempfile.TemporaryDirectory(prefix="plaudit-feedback-") as name:
        folder = Path(name)
        needs_brokers = {"unary", "bulk", "join"} & set(wanted)
        with contextlib.ExitStack() as open_until_the_end:
            bootstrap, servers = "", Servers(0, {})
            if needs_brokers:
                bootstrap = open_until_the_end.enter_context(brokers(arguments.tools, folder / "kafka"))
                servers = open_until_the_end.enter_context(served(folder / "serve", bootstrap, prefix))
            measures: dict[str, Callable[[], Any]] = {
                "unary": lambda: unary(arguments.tools, folder, servers, arguments.rounds, arguments.seconds),
                "bulk": lambda: bulk(bootstrap, prefix, servers, arguments.rounds, arguments.records),
                "join": lambda: join(bootstrap, folder, arguments.rounds, arguments.records),
                "log": lambda: log(folder, arguments.rounds),
                "growth": lambda: growth(folder, [int(each) for each in arguments.events.split(",")]),
            }
            for part in parts:
                if part in wanted and (bootstrap or part in ("unary", "log", "growth")):
                    print(part, file=sys.stderr, flush=True)
                    found[part] = measures[part]()
    found["settings"] = {"rounds": arguments.rounds, "callers": CALLERS, "python": platform.python_version(),
                         "grpcio": grpc.__version__, "cores": os.cpu_count()}  # fmt: skip
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--serve":
        serve(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        main()
