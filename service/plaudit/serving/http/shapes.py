"""Between OpenAI's JSON and the messages of plaudit.v1. Pure.

Enters: the body of a request, or a reply. Leaves: a GenerateRequest, or the JSON that OpenAI's clients read, with one
object of ours, `plaudit`: the interaction, its feedback handle and its candidates. What the service cannot do is
refused with the name of the parameter, never ignored.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.client.requests import messages_of
from plaudit.errors import InvalidField, PlauditError, WrongAction
from plaudit.plugins.returned import MAX_COMPLETIONS
from plaudit.v1 import assistant_pb2

MODEL_VERSION = "@"  # "domain@version" names a release.
_LONGEST_NAME = 64  # characters of an unknown parameter's name that its refusal repeats
_FINISH = {
    assistant_pb2.FINISH_REASON_EOS: "stop",
    assistant_pb2.FINISH_REASON_STOP: "stop",
    assistant_pb2.FINISH_REASON_LENGTH: "length",
}
_PURPOSES = {
    "serve": assistant_pb2.PURPOSE_SERVE,
    "explore": assistant_pb2.PURPOSE_EXPLORE,
    "evaluate": assistant_pb2.PURPOSE_EVALUATE,
}
# Taken and left without effect: they say something about the caller's books, not about the answer.
_NO_EFFECT = frozenset({"store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options"})
_TAKEN = _NO_EFFECT | {
    *("model", "messages", "n", "stop", "seed", "stream", "user", "max_tokens", "max_completion_tokens", "plaudit"),
    *("temperature", "top_p", "top_k", "logprobs", "metadata"),
}
# Fields of our request by OpenAI's names.
_OPENAI_FIELDS = {"domain": "model", "tags": "metadata", "end_user": "user"}
_OUR_FIELDS = frozenset({"passages", "purpose", "interaction_id", "rater", "token_ids", "store", "train"})
# Values that ask for nothing: clients send them without being asked to.
_NOTHING: tuple[Any, ...] = (None, False, 0, [], {}, "auto", "none", {"type": "text"})
_HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request in our words, with what only the shape of the reply depends on."""

    request: assistant_pb2.GenerateRequest
    stream: bool
    usage_in_stream: bool


def asked(body: Any, tenant: str, session_id: str) -> Asked:
    """The request of a chat completion's body; raises InvalidField with the parameter that cannot be taken."""
    if not isinstance(body, Mapping):
        raise InvalidField("the body is not a JSON object; send what OpenAI's chat completions take", field="")
    for name, value in body.items():
        if name not in _TAKEN and not any(value is nothing or value == nothing for nothing in _NOTHING):
            raise _not_supported(name)
    domain, version = _model(body.get("model"))
    ours = body.get("plaudit") or {}
    if not isinstance(ours, Mapping):
        raise InvalidField("plaudit is not a JSON object", field="plaudit")
    for name in set(ours) - _OUR_FIELDS:
        short, takes = name[:_LONGEST_NAME], ", ".join(sorted(_OUR_FIELDS))
        raise InvalidField(f"plaudit has no field {short!r}; it takes {takes}", field="plaudit")
    sampling: dict[str, Any] = {
        name: read(body[name], name) for name, read in _SAMPLING.items() if body.get(name) is not None
    }
    most = body.get("max_completion_tokens")
    if most is None:
        most = body.get("max_tokens")
    if most is not None:
        sampling["max_tokens"] = _whole(most, "max_tokens")
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) for each in stops):
        raise InvalidField("stop is neither a text nor a list of texts", field="stop")
    request = assistant_pb2.GenerateRequest(
        domain=domain,
        tenant=tenant,
        session_id=session_id,
        end_user=_text(body.get("user") or body.get("safety_identifier") or "", "user"),
        interaction_id=_text(ours.get("interaction_id", ""), "plaudit.interaction_id"),
        rater=_text(ours.get("rater", ""), "plaudit.rater"),
        messages=_messages(body.get("messages")),
        passages=_passages(ours.get("passages", [])),
        purpose=_purpose(ours.get("purpose", "serve")),
        n=1 if body.get("n") is None else _whole(body["n"], "n", least=1, most=MAX_COMPLETIONS),
        sampling=assistant_pb2.Sampling(stop=stops, **sampling),
        release_versions=[] if version is None else [version],
        tags=_tags(body.get("metadata")),
        logprobs=_yes(body.get("logprobs"), "logprobs"),
        token_ids=_yes(ours.get("token_ids"), "plaudit.token_ids"),
        consent=assistant_pb2.Consent(
            **{name: _yes(ours[name], f"plaudit.{name}") for name in ("store", "train") if ours.get(name) is not None}
        ),
    )
    if body.get("seed") is not None:
        request.seed = _whole(body["seed"], "seed", most=2**64 - 1)
    options = body.get("stream_options") or {}
    usage = bool(options.get("include_usage")) if isinstance(options, Mapping) else False
    return Asked(request, _yes(body.get("stream"), "stream"), usage)


def completion(reply: assistant_pb2.GenerateResponse, domain: str) -> dict[str, Any]:
    """A reply as a `chat.completion`."""
    return {
        "id": reply.interaction_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": named(domain, reply.completions[0].release_version),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": each.text, "refusal": None},
                "finish_reason": _FINISH.get(each.finish_reason, "stop"),
                "logprobs": _logprobs(each),
            }
            for index, each in enumerate(reply.completions)
        ],
        "usage": _usage(reply),
        "plaudit": _ours(reply),
    }


class Chunks:
    """The chunks of one streamed reply, in order."""

    def __init__(self, domain: str, *, usage: bool) -> None:
        self._domain, self._usage = domain, usage
        self._head: dict[str, Any] = {}

    def of(self, message: assistant_pb2.StreamGenerateResponse) -> Iterator[dict[str, Any]]:
        """The chunks of one message of the stream."""
        match message.WhichOneof("event"):
            case "begun":
                begun = message.begun
                self._head = {
                    "id": begun.interaction_id,
                    "object": "chat.completion.chunk",
                    "created": int(time.time()),
                    "model": self._domain,
                }
                ours = {
                    "interaction_id": begun.interaction_id,
                    "handle": begun.handle,
                    "handle_expires_at": _rfc3339(begun.handle_expires_at),
                    "candidate_ids": list(begun.candidate_ids),
                }
                choices = [
                    _delta(index, {"role": "assistant", "content": ""}) for index in range(len(begun.candidate_ids))
                ]
                yield self._chunk(choices, plaudit=ours)
            case "delta":
                yield self._chunk([_delta(message.delta.index, {"content": message.delta.text})])
            case "done":
                done = message.done
                self._head["model"] = named(self._domain, done.completions[0].release_version)
                ended = [
                    {**_delta(index, {}, _FINISH.get(each.finish_reason, "stop")), "logprobs": _logprobs(each)}
                    for index, each in enumerate(done.completions)
                ]
                yield self._chunk(ended, plaudit=_ours(done))
                if self._usage:
                    yield self._chunk([], usage=_usage(done))

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "choices": choices, **more}


def failure(error: PlauditError) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of an error, in OpenAI's shape with our reason as its code."""
    status = _HTTP_STATUS.get(error.code, 500)
    kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    param = _openai_name(error.wrong_field)
    message = error.message
    if param and message.startswith(error.wrong_field):  # the service's own name of the field
        message = param + message.removeprefix(error.wrong_field)
    if isinstance(error, WrongAction):
        message = f"{message.partition(';')[0]}; the HTTP door has completions alone: ask it over gRPC (Choose)"
    return status, {"error": {"message": message, "type": kind, "param": param or None, "code": error.reason}}


def _openai_name(field: str) -> str:
    """A field of our request by the name that OpenAI's clients know."""
    if field.startswith("tags["):
        return "metadata" + field.removeprefix("tags")
    return _OPENAI_FIELDS.get(field, field.removeprefix("sampling."))


def models(domains: Sequence[str], releases: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """A `list` of models: each domain (whatever is live), and each of its releases by "domain@version"."""
    data = []
    for domain in domains:
        names = [domain, *(named(domain, version) for version in releases.get(domain, ()))]
        data += [{"id": name, "object": "model", "created": 0, "owned_by": "plaudit"} for name in names]
    return {"object": "list", "data": data}


def named(domain: str, version: int) -> str:
    """The name of a release as a model."""
    return f"{domain}{MODEL_VERSION}{version}"


def channel_name(domain: str, tenant: str) -> str:
    """The channel of a domain's model for a tenant; the caller's own if it is empty."""
    return f"{domain}/{tenant}"


def _model(name: Any) -> tuple[str, int | None]:
    if not isinstance(name, str) or not name:
        raise InvalidField("model is missing; name a domain, or domain@version", field="model")
    domain, at, version = name.partition(MODEL_VERSION)
    if not at:
        return domain, None
    if not (version.isascii() and version.isdigit() and len(version) < 10):
        raise InvalidField(f"model is {name[:64]!r}; behind @ stands a release's version, a number", field="model")
    return domain, int(version)


def _messages(messages: Any) -> list[assistant_pb2.Message]:
    if not isinstance(messages, list):
        raise InvalidField('messages is not a list; send [{"role": "user", "content": "..."}]', field="messages")
    return messages_of(messages)


def _tags(metadata: Any) -> dict[str, str]:
    tags = metadata or {}
    if not isinstance(tags, Mapping) or not all(isinstance(value, str) for value in tags.values()):
        raise InvalidField("metadata is not an object whose values are texts", field="metadata")
    return dict(tags)


def _yes(value: Any, field: str) -> bool:
    if not isinstance(value, bool | None):
        raise InvalidField(f"{field} is neither true nor false", field=field)
    return bool(value)


def _passages(passages: Any) -> list[assistant_pb2.Passage]:
    known = {"passage_id", "text", "source"}
    if not isinstance(passages, list) or not all(
        isinstance(each, Mapping) and not set(each) - known and all(isinstance(value, str) for value in each.values())
        for each in passages
    ):
        raise InvalidField(
            "plaudit.passages is not a list of objects with passage_id, text and source", field="plaudit.passages"
        )
    return [assistant_pb2.Passage(**each) for each in passages]


def _purpose(name: Any) -> assistant_pb2.Purpose:
    if not isinstance(name, str) or name not in _PURPOSES:
        raise InvalidField("plaudit.purpose must be serve, explore or evaluate", field="plaudit.purpose")
    return _PURPOSES[name]


def _number(value: Any, field: str) -> float:
    """A finite number; JSON's integers have no end, and 1e400 is one of its numbers."""
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidField(f"{field} is not a finite number", field=field)
    return number


def _whole(value: Any, field: str, most: int = 2**31 - 1, least: int = 0) -> int:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value  # some clients write 5.0
    if isinstance(whole, bool) or not isinstance(whole, int) or not least <= whole <= most:
        raise InvalidField(f"{field} is not a whole number from {least} to {most}", field=field)
    return whole


_SAMPLING: Mapping[str, Callable[[Any, str], float]] = {"temperature": _number, "top_p": _number, "top_k": _whole}


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidField(f"{field} is not a text", field=field)
    return value


def _not_supported(name: str) -> InvalidField:
    short = name[:_LONGEST_NAME]
    return InvalidField(f"{short} is not supported here; leave it out", field=short)


def _delta(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}


def _logprobs(made: assistant_pb2.Completion) -> dict[str, Any] | None:
    """Log-probs of a completion's tokens in OpenAI's shape; None if they were not asked for."""
    if not made.logprobs:
        return None
    tokens = [
        {"token": each.text, "logprob": each.logprob, "bytes": list(each.text.encode()), "top_logprobs": []}
        for each in made.logprobs
    ]
    return {"content": tokens, "refusal": None}


def _usage(reply: assistant_pb2.GenerateResponse) -> dict[str, int]:
    made = sum(each.tokens for each in reply.completions)
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": made,
        "total_tokens": reply.prompt_tokens + made,
    }


def _ours(reply: assistant_pb2.GenerateResponse) -> dict[str, Any]:
    token_ids = [list(each.token_ids) for each in reply.completions]
    return {
        **({"token_ids": token_ids} if any(token_ids) else {}),
        "interaction_id": reply.interaction_id,
        "handle": reply.handle,
        "handle_expires_at": _rfc3339(reply.handle_expires_at),
        "candidate_ids": [each.candidate_id for each in reply.completions],
        "release_versions": [each.release_version for each in reply.completions],
    }


def _rfc3339(stamp: Any) -> str:
    return str(stamp.ToDatetime(dt.UTC).isoformat())
