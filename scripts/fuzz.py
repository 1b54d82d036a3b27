"""Sends malformed records and messages and counts how each is answered: `make fuzz`.

Starts a server on a tiny random model, and a join on its log. Of the cases 45 % are calls: every field of every request
with values that break programs, then random fields and broken bytes; 45 % are records of the log with broken bytes or
broken fields, which the join reads; and a tenth are requests to the HTTP door (fuzz_http.py). A call must be answered,
never by INTERNAL or UNKNOWN, and each refusal must carry its reason; the join must read every record, and must reject
what it cannot use with its reason.

    python scripts/fuzz.py [--cases 100000] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fuzz_http
import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from plaudit.client import Plaudit
from plaudit.engine.base import Base
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import Undecodable
from plaudit.eventlog import Topic
from plaudit.eventlog.codec import Retraction, decode, encode_feedback, encode_interaction, encode_retraction
from plaudit.evidence.join import TOPICS, Join
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import load_plugins
from plaudit.settings import EngineSettings, ModelSettings
from plaudit.testing.evidence import CHANNEL, START, make_feedback, make_interaction
from plaudit.testing.models import tiny_model
from plaudit.testing.serving import LocalServer, local_server, serve_settings
from plaudit.types import Choice, Thumbs
from plaudit.v1 import (
    assistant_pb2,
    domains_pb2,
    events_pb2,
    feedback_pb2,
    privacy_pb2,
    releases_pb2,
)
from plaudit.wire import from_call

THREADS = 4
CALL_SECONDS = 120.0  # of 255 tokens on a machine that does much else
DOMAINS = ("echo", "echo-choice", "instruction", "moderation", "recommendation")
TEXTS = (
    "", "\0", "a\0b", " ", "\n" * 50, "x" * 300, "y" * 5000, "z" * 70_000, "\u202e\u0000", "𝒳" * 40, "\ud7ff\ue000",
    "../../etc/passwd", "'; DROP TABLE feedback; --", "%s%n{0}", "<|im_start|>system", "0", "-1", "NaN", "echo/default",
    "e/../x", "/", "ΩΩ", "\r\nx-header: 1", str(uuid.UUID(int=0)), str(uuid.uuid4()).upper(), "0" * 36, "=" * 44,
)  # fmt: skip
FLOATS = (0.0, -0.0, 1e-45, 1e-38, -1.0, 1.0, 2.0, 3.4e38, math.inf, -math.inf, math.nan, 1e-9, 100.0)
WHOLE = (0, 1, 2, 3, 7, 50, 51, 255, 65_535, 2**31 - 1)
T = FieldDescriptor
SIGNED = {T.CPPTYPE_INT32: 31, T.CPPTYPE_INT64: 63}
UNSIGNED = {T.CPPTYPE_UINT32: 32, T.CPPTYPE_UINT64: 64}


@dataclass(frozen=True)
class Call:
    """A method, a request that it takes, and whether requests and answers are streams."""

    method: str
    request: Message
    streams: tuple[bool, bool] = (False, False)


@dataclass
class Found:
    """What came of the cases."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, wrong: str = "") -> None:
        """One case."""
        with self.lock:
            self.answers[what] += 1
            if wrong:
                self.wrong.append(wrong)


def values(fd: Any) -> Sequence[Any]:
    """Values that a field of this type may carry on the wire and that break programs."""
    kind = fd.cpp_type
    if kind == T.CPPTYPE_STRING:
        return TEXTS if fd.type == T.TYPE_STRING else [text.encode() for text in TEXTS] + [bytes(16), b"\xff\xfe"]
    if kind in (T.CPPTYPE_FLOAT, T.CPPTYPE_DOUBLE):
        return FLOATS
    if kind == T.CPPTYPE_BOOL:
        return (False, True)
    if kind in SIGNED:
        return (*WHOLE, -1, 2 ** SIGNED[kind] - 1, -(2 ** SIGNED[kind]))
    if kind in UNSIGNED:
        return (*WHOLE, 2 ** UNSIGNED[kind] - 1)
    return (0, 1, 2, 3, 99, -1, 2**31 - 1)  # an enumeration: open in proto3


def paths(descriptor: Any, depth: int = 4) -> Iterator[tuple[Any, ...]]:
    """Every field below a message, as the fields that lead to it."""
    for fd in descriptor.fields:
        if fd.message_type is None:
            yield (fd,)
        elif depth and not fd.message_type.GetOptions().map_entry:
            yield (fd,)
            for rest in paths(fd.message_type, depth - 1):
                yield (fd, *rest)


def put(message: Message, path: Sequence[Any], value: Any) -> None:
    """Sets the field at the end of a path; a list gets one item more, and a message field stays empty."""
    for fd in path[:-1]:
        inner = getattr(message, fd.name)
        message = (inner[0] if inner else inner.add()) if fd.is_repeated else inner
    fd = path[-1]
    if fd.message_type is not None:
        (getattr(message, fd.name).add if fd.is_repeated else getattr(message, fd.name).SetInParent)()
    elif fd.is_repeated:
        getattr(message, fd.name).append(value)
    else:
        setattr(message, fd.name, value)


def every_field(message: Message) -> Iterator[bytes]:
    """The message with one field changed: each field in turn, with each value of its type."""
    for path in paths(message.DESCRIPTOR):
        for value in values(path[-1]) if path[-1].message_type is None else (None,):
            changed = type(message)()
            changed.CopyFrom(message)
            put(changed, path, value)
            yield changed.SerializeToString()


def anyhow(message: Message, chance: random.Random) -> bytes:
    """The message with some fields changed, many items in a list, or broken bytes."""
    changed, known = type(message)(), list(paths(message.DESCRIPTOR))
    changed.CopyFrom(message)
    for _ in range(chance.randrange(4) if known else 0):
        path = chance.choice(known)
        times = chance.choice((1, 1, 1, 3, 60)) if path[-1].is_repeated else 1
        for _ in range(times):
            put(changed, path, None if path[-1].message_type is not None else chance.choice(values(path[-1])))
    data = bytearray(changed.SerializeToString())
    if chance.random() < 0.5:
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(4):
                case 0:
                    del data[at:]
                case 1:
                    data[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 2:
                    del data[at : at + chance.randrange(1, 9)]
                case _ if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def calls_of(server: LocalServer) -> list[Call]:
    """A good request of every method."""
    with Plaudit(server.target, patience=0.0, timeout=60.0) as client:
        reply = client.generate("echo", "Hello", max_tokens=2, n=2)
        choice = client.choose("echo-choice", "tea?", ["a", "b"])
    said = assistant_pb2.Message(role="user", content="hi")
    generate = assistant_pb2.GenerateRequest(domain="echo", messages=[said])
    generate.sampling.max_tokens = 2
    stream = assistant_pb2.StreamGenerateRequest()
    (inner,) = stream.DESCRIPTOR.fields if len(stream.DESCRIPTOR.fields) == 1 else (None,)
    if inner is not None:
        getattr(stream, inner.name).CopyFrom(generate)
    else:
        stream.MergeFromString(generate.SerializeToString())
    choose = assistant_pb2.ChooseRequest(domain="echo-choice", messages=[said])
    choose.options.add(option_id="x", text="a")
    choose.options.add(option_id="y", text="b")
    act = feedback_pb2.Feedback(handle=reply.handle, rater="ada")
    act.thumbs.up = True
    act.thumbs.candidate_id = reply.candidate_ids[0]
    label = feedback_pb2.Feedback(handle=choice.handle, rater="bob")
    label.label.value = "yes"
    label.label.candidate_id = choice.candidate_ids[0]
    retract = feedback_pb2.RetractFeedbackRequest(handle=reply.handle, feedback_id=str(uuid.uuid4()), rater="ada")
    named = {"channel": "echo/default"}
    return [
        Call("AssistantService/Generate", generate),
        Call("AssistantService/StreamGenerate", stream, (False, True)),
        Call("AssistantService/Choose", choose),
        Call("FeedbackService/SubmitFeedback", feedback_pb2.SubmitFeedbackRequest(feedback=act)),
        Call("FeedbackService/SubmitFeedback", feedback_pb2.SubmitFeedbackRequest(feedback=label)),
        Call("FeedbackService/StreamFeedback", feedback_pb2.StreamFeedbackRequest(feedback=act), (True, True)),
        Call("FeedbackService/RetractFeedback", retract),
        Call("DomainService/ListDomains", domains_pb2.ListDomainsRequest()),
        Call("ReleaseService/ListChannels", releases_pb2.ListChannelsRequest()),
        Call("ReleaseService/ListReleases", releases_pb2.ListReleasesRequest(**named)),
        Call("ReleaseService/GetRelease", releases_pb2.GetReleaseRequest(**named)),
        Call("ReleaseService/WatchReleases", releases_pb2.WatchReleasesRequest(**named), (False, True)),
        Call("ReleaseService/PromoteRelease", releases_pb2.PromoteReleaseRequest(**named)),
        Call("ReleaseService/RollBackRelease", releases_pb2.RollBackReleaseRequest(**named)),
        Call("ReleaseService/PinRelease", releases_pb2.PinReleaseRequest(**named)),
        Call("PrivacyService/ErasePerson", privacy_pb2.ErasePersonRequest()),
        Call("PrivacyService/GetErasureReceipt", privacy_pb2.GetErasureReceiptRequest()),
    ]


def ask(channel: grpc.Channel, call: Call, data: bytes, found: Found) -> None:
    """One call; notes how it was answered."""
    method, (many, streamed) = f"/plaudit.v1.{call.method}", call.streams
    seconds = 0.2 if call.method.endswith("WatchReleases") else CALL_SECONDS
    items = 0
    try:
        if many:
            for raw in channel.stream_stream(method)(iter([data]), timeout=seconds):
                items += 1
                answer = feedback_pb2.StreamFeedbackResponse.FromString(raw)
                if any(not each.accepted and not each.reason for each in answer.answers or (answer,)):
                    found.add("no reason", f"{call.method} {data!r}: refused without a reason")
        elif streamed:
            items = sum(1 for _ in channel.unary_stream(method)(data, timeout=seconds))
        else:
            channel.unary_unary(method)(data, timeout=seconds)
        found.add("OK")
    except grpc.RpcError as error:
        code, told = error.code().name, from_call(error)
        watched = code == "DEADLINE_EXCEEDED" and call.method.endswith("WatchReleases")
        bad = code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED") and not watched
        why = f"{call.method} {data!r}: {code} {getattr(told, 'reason', '')} {error.details()}"
        if not watched and not getattr(told, "reason", ""):
            bad = True
        found.add(f"{code} {getattr(told, 'reason', '')}", why[:600] if bad else "")


def calls(server: LocalServer, cases: int, seed: int) -> Found:
    """So many calls: every field first."""
    known, found = calls_of(server), Found()
    chance = random.Random(seed)
    work = [(call, data) for call in known for data in every_field(call.request)]
    chance.shuffle(work)
    systematic = len(work)
    ours: Callable[[], tuple[Call, bytes]] = lambda: (lambda call: (call, anyhow(call.request, chance)))(  # noqa: E731
        chance.choice(known)
    )
    lock, left = threading.Lock(), iter(range(max(cases, systematic)))

    def run() -> None:
        with grpc.insecure_channel(server.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            while True:
                with lock:
                    number = next(left, None)
                    if number is None:
                        return
                    call, data = work[number] if number < systematic else ours()
                ask(channel, call, data, found)
                if number and number % 5000 == 0:
                    print(f"  {number} calls, {len(found.wrong)} wrong", flush=True)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def http(server: LocalServer, cases: int, seed: int) -> Found:
    """So many requests to the HTTP door."""
    found = Found()
    with Plaudit(server.target, patience=0.0, timeout=60.0) as client:
        handle = client.generate("echo", "Hello", max_tokens=2).handle
    fuzz_http.requests(f"http://127.0.0.1:{server.server.http_port}", handle, cases, seed, THREADS, found.add)
    return found


def records(server: LocalServer, cases: int, seed: int) -> Found:
    """So many records, through the decoder one by one and through a join all together."""
    chance, found = random.Random(seed), Found()
    interaction, act = make_interaction("i"), make_feedback("f", "i", Thumbs("a", True))
    pair = make_feedback("g", "i", Choice("a", "b"))
    withdrawn = Retraction(feedback_id="f", interaction_id="i", channel=CHANNEL, accepted_at=START, rater="ann")
    good = [
        (Topic.INTERACTIONS, encode_interaction(interaction, producer="fuzz")),
        (Topic.FEEDBACK, encode_feedback(act, producer="fuzz")),
        (Topic.FEEDBACK, encode_feedback(pair, producer="fuzz")),
        (Topic.FEEDBACK, encode_retraction(withdrawn, producer="fuzz")),
    ]
    store = EvidenceStore(server.settings.store_url)
    join = Join(server.log, store, load_plugins(DOMAINS), server.settings.join)
    systematic = [(topic, data) for topic, value in good for data in every_field(events_pb2.Envelope.FromString(value))]
    done = 0
    while done < max(cases, len(systematic)):
        batch = systematic[done : done + 500]
        while len(batch) < 500:
            topic, value = chance.choice(good)
            batch.append((topic, anyhow(events_pb2.Envelope.FromString(value), chance)))
        done += len(batch)
        for _, data in batch:
            try:
                decode(data)
                found.add("decoded")
            except Undecodable:
                found.add("UNDECODABLE")
            except Exception as error:
                found.add("broke", f"decode {data!r}: {error!r}"[:600])
        for topic in TOPICS:
            keyed = [(chance.choice(("i", "", "k")), data) for place, data in batch if place is topic]
            server.log.append_many(topic, keyed)
        try:
            while join.run_once(0.0):
                pass
        except Exception as error:
            found.add("join broke", f"{error!r}"[:600])
            break
        if done % 10_000 == 0:
            print(f"  {done} records, {len(found.wrong)} wrong", flush=True)
    if any(join.lag().values()):
        found.add("unread", f"the join left {join.lag()}")
    for rejected in server.records(Topic.REJECTED):
        found.add(f"rejected {getattr(rejected, 'reason', '')}", "" if getattr(rejected, "reason", "") else "no reason")
    join.close()
    store.close()
    return found


def main() -> int:
    """Runs all cases; exit code 0 if none was answered wrongly."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, help="calls and records together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="plaudit-fuzz-") as name:
        folder = Path(name)
        base = Base.load(tiny_model(folder / "model"), device="cpu", dtype="float32")
        engine = TorchEngine(base, EngineSettings(widths=(4, 16)), ModelSettings(adapter_layers=2))
        settings = serve_settings(folder / "data", http_port=0)
        with local_server(folder / "data", engine, load_plugins(DOMAINS), settings=settings) as server:
            tenth, seed = arguments.cases // 10, arguments.seed
            rest = (arguments.cases - tenth) // 2
            found = {
                "requests": http(server, tenth, seed),
                "records": records(server, rest, seed),
                "calls": calls(server, rest, seed),
            }
        engine.close()
    for part, each in found.items():
        print(part, json.dumps(dict(each.answers.most_common()), indent=2))
        for line in sorted(set(each.wrong))[:20]:
            print(f"WRONG {line}")
    wrong = sum(len(each.wrong) for each in found.values())
    cases = sum(count for each in found.values() for what, count in each.answers.items() if "rejected" not in what)
    print(f"cases {cases:,}, wrong {wrong}, {time.monotonic() - began:.0f} s")
    if cases < tenth + 2 * rest:
        # A thread of this program that breaks would else take its cases along, and nobody would miss them.
        print(f"WRONG only {cases:,} of {tenth + 2 * rest:,} cases came to an end")
        return 1
    return 1 if wrong else 0


if __name__ == "__main__":
    from plaudit.telemetry import configure

    configure("text", "error", "fuzz")
    sys.exit(main())
