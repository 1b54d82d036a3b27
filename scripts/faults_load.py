"""People who ask and rate while `scripts/faults.py` breaks things, and the ledger of what they were told.

What enters: addresses of replicas. What leaves: every act that was sent, and every one that was acknowledged. Knows the
protos alone.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from plaudit.ids import new_id

CLIENTS = 4
# After its start a replica is called again at once; the library alone would wait for up to two minutes.
CONNECTING = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000)]


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

        channels = [grpc.insecure_channel(target, options=CONNECTING) for target in self._targets]
        asks = [assistant_pb2_grpc.AssistantServiceStub(channel) for channel in channels]
        gives = [feedback_pb2_grpc.FeedbackServiceStub(channel) for channel in channels]
        while not self._stop.is_set():
            request = assistant_pb2.GenerateRequest(domain="echo", tenant="default")
            request.messages.add(role="user", content=f"say {chance.randrange(1000)}")
            request.sampling.max_tokens, request.n = 6, 2
            reply = self._try(chance, asks, lambda stub, request=request: stub.Generate(request, timeout=10.0), 1)
            for _ in range(chance.randrange(1, 6) if reply is not None else 0):
                named = {"feedback_id": new_id(), "rater": str(uuid.uuid4())}
                act = feedback_pb2.Feedback(handle=reply.handle, **named)
                judge(act, reply, chance)
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
                    self._ledger.failures[what_ended(error)] += 1
                time.sleep(0.1)
                continue
            with self._ledger.lock:
                self._ledger.slowest = max(self._ledger.slowest, time.monotonic() - began)
            return answer
        return None


def what_ended(error: Any) -> str:
    """The code of a call that failed and the reason that the replica gave; without one nobody answered."""
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    found = status is not None and any(detail.Unpack(info) for detail in status.details)
    return f"{error.code().name}, {info.reason if found else 'no replica answered'}"


def judge(act: Any, reply: Any, chance: random.Random) -> None:
    """Fills in what somebody says about two answers: most of these people like spaces."""
    one, other = sorted(reply.completions, key=lambda each: (each.text.count(" "), each.candidate_id), reverse=True)
    if chance.random() < 0.1:
        one, other = other, one
    if chance.random() < 0.5:
        act.choice.chosen_id, act.choice.other_id = one.candidate_id, other.candidate_id
    else:
        act.thumbs.candidate_id, act.thumbs.up = one.candidate_id, True
