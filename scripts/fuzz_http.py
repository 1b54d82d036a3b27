"""Malformed requests to the HTTP door, a part of `make fuzz`.

Every field of a chat completion and of feedback with values of every type, then random ones, broken bytes, other
encodings, headers, methods and paths. Each must be answered: never by 500 or above, and what is refused in OpenAI's
shape, with the service's reason as its code. A stream that began must end, with [DONE] or with such an error.
"""

from __future__ import annotations

import copy
import json
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

CALL_SECONDS = 120.0
TENANT, SESSION = "x-plaudit-tenant", "x-plaudit-session"
DEEP: Any = json.loads("[" * 60 + "]" * 60)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, 2**64, -(2**70), 0.0, -0.0, 0.5, 1.5, 3.4e38, 1e-320, "", "0",
    " ", "a\0b", "x" * 300, "y" * 70_000, "\u202e", "𝒳" * 40, "../../etc/passwd", "%s{0}", "<|im_start|>system", "NaN",
    "true", "echo", "echo@0", "echo@-1", "echo@" + "9" * 30, "nobody", "serve", "explore", "user", "tool", [], [[]],
    ["a"], [None], [1, 2], ["s"] * 300, {}, {"": ""}, {"a": None}, {"a": {"b": [1]}}, {"up": True}, {"type": "text"},
    [{"type": "text", "text": "hi"}], [{"role": "user", "content": "hi"}], [{"role": "user"}], [{}], DEEP,
)  # fmt: skip
# What Python's encoder does not write, in the place of a value.
RAW = ("NaN", "Infinity", "1e400", "9" * 5000, '"\\ud800"', "01", "'a'", "", "{", "[" * 5000, "nul", '"a\tb"')
HEADERS: tuple[tuple[str, bytes], ...] = (
    *((name, value) for name in (TENANT, SESSION) for value in (b"", b"acme", b"a b", b"x" * 4000, b"\xe9", b"e/../x")),
    *(("authorization", value) for value in (b"", b"Bearer", b"Bearer x", b"Basic eDp5", b"Bearer " + b"k" * 4000)),
    *(("content-type", value) for value in (b"", b"text/plain", b"multipart/form-data", b"a/b; charset=x")),
    *(("accept", value) for value in (b"", b"text/html", b"text/event-stream")),
    *(("x-request-id", value) for value in (b"", b"\xff\xfe", b"a\tb", b"r" * 4000)),
    *(("traceparent", value) for value in (b"00-0-0-00", b"\xe9", b"00-" + b"f" * 32 + b"-" + b"f" * 16 + b"-ff")),
    ("content-encoding", b"gzip"), ("expect", b"nothing"), ("range", b"bytes=0-1"), ("origin", b"null"),
)  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW")
PATHS = (
    "/", "/v1", "/v1/", "/v1/models", "/v1/models/echo", "/v1/models/echo@0", "/v1/models/%00", "/v1/models/../x",
    "/v1/models/%2e%2e%2fx", "/v1/models/" + "m" * 3000, "/v1/models/%ff", "/v1/models/a%2fb", "/v1/chat/completions",
    "/v1/chat/completions/", "/v1/feedback", "/v1/feedback/retract", "/v1/domains", "/v1/embeddings", "/healthz",
    "/v1/models?limit=-1&after=%00", "//v1/models", "/v1/chat%2fcompletions",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One request."""

    method: str
    path: str
    body: bytes = b""
    headers: Sequence[tuple[str, bytes]] = field(default=(("content-type", b"application/json"),))

    def __str__(self) -> str:
        """Return what to look at if it is answered wrongly."""
        return f"{self.method} {self.path[:60]} {dict(self.headers)} {self.body[:200]!r}"[:400]


def good_bodies(handle: str) -> dict[str, Any]:
    """A good body for each path that takes one, with every field that it knows."""
    chat = {
        "model": "echo", "messages": [{"role": "user", "content": "hi"}], "n": 1, "temperature": 0.5, "top_p": 0.9,
        "top_k": 5, "max_tokens": 2, "max_completion_tokens": 2, "stop": ["x"], "seed": 3, "stream": False,
        "stream_options": {"include_usage": True}, "logprobs": True, "metadata": {"page": "a"}, "user": "u",
        "plaudit": {
            "passages": [{"passage_id": "p", "text": "Tea.", "source": "s"}], "purpose": "serve", "rater": "r",
            "interaction_id": "", "token_ids": False, "store": True, "train": True,
        },
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "presence_penalty": 0,
        "top_logprobs": 0, "store": False, "service_tier": "auto", "safety_identifier": "i", "logit_bias": {},
    }  # fmt: skip
    act = {"handle": handle, "rater": "ada", "feedback_id": "", "comment": {"text": "c"}}
    return {
        "/v1/chat/completions": chat,
        "/v1/feedback": {**act, "thumbs": {"up": True, "candidate_id": "#0"}, "reasons": [], "created_at": None},
        "/v1/feedback/retract": {"handle": handle, "feedback_id": "f", "rater": "ada"},
    }


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, as the keys that lead to it."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*at, key)
        yield from places(value[key], (*at, key))


def changed(body: Any, place: Sequence[Any], value: Any) -> Any:
    """The body with another value in one place."""
    found = copy.deepcopy(body)
    inside = found
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return found


def every_field(bodies: dict[str, Any]) -> Iterator[Case]:
    """Each place of each body with each value, then what no encoder writes; each header; each method and path."""
    mark = "what no encoder writes"
    for path, body in bodies.items():
        for place in places(body):
            for value in VALUES:
                yield Case("POST", path, json.dumps(changed(body, place, value)).encode())
            written = json.dumps(changed(body, place, mark))
            for raw in RAW:
                yield Case("POST", path, written.replace(json.dumps(mark), raw).encode())
        for header in HEADERS:
            yield Case("POST", path, json.dumps(body).encode(), (header,))
        for encoding in ("utf-16", "utf-32", "utf-8-sig", "cp037"):
            yield Case("POST", path, json.dumps(body).encode(encoding))
        yield Case("POST", path, b" " * (9 << 20))
    for path in PATHS:
        for method in METHODS:
            yield Case(method, path, b"{}" if method == "POST" else b"")


def anyhow(bodies: dict[str, Any], chance: random.Random) -> Case:
    """A body with some places changed, broken bytes, and a header."""
    path = chance.choice(list(bodies))
    body = bodies[path]
    for _ in range(chance.randrange(4)):
        place = chance.choice(list(places(body)))
        body = changed(body, place, chance.choice(VALUES))
    if path.endswith("completions") and isinstance(body, dict) and chance.random() < 0.3:
        body = {**body, "stream": True}
    data = bytearray(json.dumps(body).encode())
    for _ in range(chance.randrange(1, 4) if chance.random() < 0.5 else 0):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(3):
            case 0:
                del data[at:]
            case 1:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            case _ if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
    headers = (("content-type", b"application/json"),)
    return Case("POST", path, bytes(data), (chance.choice(HEADERS),) if chance.random() < 0.2 else headers)


def said(answer: httpx.Response) -> tuple[str, str]:
    """How a request was answered, and what is wrong with that; empty if nothing is."""
    status = answer.status_code
    try:
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            last = [line for line in answer.text.split("\n\n") if line][-1].removeprefix("data: ")
            if last == "[DONE]":
                return "200 stream", ""
            error = json.loads(last)["error"]
        else:
            value = answer.json()
            if status < 400:
                return str(status), ""
            error = value["error"]
        fields = {"message": str, "type": str, "code": str}
        shaped = all(isinstance(error[name], kind) and error[name] for name, kind in fields.items())
        wrong = not shaped or "param" not in error or status >= 500 or error["code"] in ("INTERNAL", "UNKNOWN")
        return f"{status} {error['code']}", f"{status} {answer.text[:200]}" if wrong else ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return f"{status} no shape", f"{status} {type(error).__name__} {answer.text[:200]!r}"


def requests(url: str, handle: str, cases: int, seed: int, threads: int, add: Any) -> None:
    """So many requests, every field first; `add` is told how each was answered, and what was wrong with that."""
    bodies, chance = good_bodies(handle), random.Random(seed)
    work = list(every_field(bodies))
    chance.shuffle(work)
    lock, left = threading.Lock(), iter(range(max(cases, len(work))))

    def run() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=CALL_SECONDS) as client:
            while True:
                with lock:
                    number = next(left, None)
                    if number is None:
                        return
                    case = work[number] if number < len(work) else anyhow(bodies, chance)
                try:
                    answer = client.request(case.method, case.path, content=case.body, headers=list(case.headers))
                except httpx.HTTPError as error:
                    add(type(error).__name__, f"{case}: {error!r}")
                    continue
                what, wrong = said(answer)
                add(what, f"{case}: {wrong}" if wrong else "")

    runs = [threading.Thread(target=run) for _ in range(threads)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
