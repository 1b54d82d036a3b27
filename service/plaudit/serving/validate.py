"""Checks requests against every limit that the protos document.

What enters: protobuf requests. What leaves: the frozen types of `plaudit.types`, with each field within its limits, or
a RequestRefused that names the field, its value and its limit. Never looks anything up: whether a domain, release or
option is known is decided by those who own it. Texts and names of people are never repeated in a message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from plaudit import ids
from plaudit.access.rights import caller
from plaudit.errors import EmptyPrompt, InvalidField, InvalidText
from plaudit.plugins.returned import (
    MAX_COMPLETIONS,
    MAX_OPTION_BYTES,
    MAX_OPTION_ID_BYTES,
    MAX_OPTIONS,
    MAX_STOP_BYTES,
    MAX_STOPS,
    MAX_TEMPERATURE,
    MAX_TOP_K,
    MIN_OPTIONS,
)
from plaudit.types import Channel, Consent, Message, Option, Passage, Purpose, Request, Tags
from plaudit.v1 import assistant_pb2

DEFAULT_TENANT = "default"
MAX_MESSAGES = 64
MAX_TEXT_BYTES = 65_536
MAX_PASSAGES = 32
MAX_PASSAGE_ID_BYTES = 256
MAX_SOURCE_BYTES = 1_024
MAX_SESSION_BYTES = 128
MAX_PERSON_BYTES = 256
MAX_VERSION = 2**31 - 1  # what every database's integer column holds
MAX_REASON_BYTES = 1_024
MAX_NAME_BYTES = 64
MAX_TAGS = 16
MAX_TAG_BYTES = 512

_TENANT = re.compile(r"[a-z0-9_-]{1,64}")
_UUID = re.compile("[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
_TAG = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_ROLES = ("system", "user", "assistant")
_PURPOSES = {
    assistant_pb2.PURPOSE_UNSPECIFIED: Purpose.SERVE,
    assistant_pb2.PURPOSE_SERVE: Purpose.SERVE,
    assistant_pb2.PURPOSE_EXPLORE: Purpose.EXPLORE,
    assistant_pb2.PURPOSE_EVALUATE: Purpose.EVALUATE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What every request to the assistant says about itself. `end_user` and `rater` are as the caller named them.

    `store`, `train`: what people agreed to; None if the request does not say.
    """

    interaction_id: str
    channel: Channel
    purpose: Purpose
    session_id: str
    end_user: str
    rater: str
    request: Request
    tags: Tags
    store: bool | None = None
    train: bool | None = None

    def consent(self, default: Consent) -> Consent:
        """What people agreed to; what the request does not say is as in `default`."""
        return Consent(
            store=default.store if self.store is None else self.store,
            train=default.train if self.train is None else self.train,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWish:
    """Sampling as the caller wants it; None leaves a field to the domain or the release."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionsWanted:
    """A checked GenerateRequest. `n` 0 leaves the number to the domain."""

    envelope: Envelope
    n: int
    sampling: SamplingWish
    seed: int | None
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceWanted:
    """A checked ChooseRequest."""

    envelope: Envelope
    version: int | None


def completions_wanted(asked: assistant_pb2.GenerateRequest, max_tokens: int) -> CompletionsWanted:
    """The request, checked; `max_tokens` is the service's limit."""
    if asked.n > MAX_COMPLETIONS:
        raise refused("n", asked.n, f"1 to {MAX_COMPLETIONS}")
    if len(asked.release_versions) > 1 and len(asked.release_versions) != (asked.n or 1):
        raise refused("release_versions", f"{len(asked.release_versions)} entries", "empty, one entry, or n entries")
    return CompletionsWanted(
        envelope=_envelope(asked, ()),
        n=asked.n,
        sampling=_sampling(asked.sampling, max_tokens),
        seed=asked.seed if asked.HasField("seed") else None,
        versions=tuple(release_version("release_versions", version) for version in asked.release_versions),
    )


def choice_wanted(asked: assistant_pb2.ChooseRequest) -> ChoiceWanted:
    """The request, checked."""
    if asked.options:  # a domain may make them itself
        check_option_count(len(asked.options))
    options = []
    for index, option in enumerate(asked.options):
        field = f"options[{index}]"
        name = short_text(f"{field}.option_id", option.option_id, MAX_OPTION_ID_BYTES, required=True)
        text = short_text(f"{field}.text", option.text, MAX_OPTION_BYTES, required=True)
        options.append(Option(name, text))
    if len({option.option_id for option in options}) != len(options):
        raise InvalidField("two options have the same option_id; give each its own", field="options")
    if len({option.text for option in options}) != len(options):
        raise InvalidField("two options have the same text; send it once", field="options")
    version = release_version("release_version", asked.release_version) if asked.HasField("release_version") else None
    return ChoiceWanted(envelope=_envelope(asked, options), version=version)


def check_option_count(count: int) -> None:
    """Raises InvalidField for fewer or more options than a choice may have."""
    if not MIN_OPTIONS <= count <= MAX_OPTIONS:
        limit = f"{MIN_OPTIONS} to {MAX_OPTIONS}"
        came = f"{count} option{'s' * (count != 1)} came"
        raise InvalidField(f"{came}; a choice is among {limit}", field="options", value=count, limit=limit)


def refused(field: str, value: object, limit: str) -> InvalidField:
    """The refusal of a field: what it is and what it must be."""
    return InvalidField(f"{field} is {value}; it must be {limit}", field=field, value=value, limit=limit)


def short_text(field: str, value: str, max_bytes: int, *, required: bool = False) -> str:
    """A text of at most `max_bytes` bytes without NUL; raises InvalidText or InvalidField."""
    if not value and not required:
        return value
    if "\0" in value:
        raise InvalidText(f"{field} contains a NUL byte; remove it", field=field)
    size = len(value.encode())
    if size > max_bytes:
        raise refused(field, f"{size} bytes", f"at most {max_bytes} bytes")
    if required and not value:
        raise refused(field, "empty", f"1 to {max_bytes} bytes")
    return value


def identifier(field: str, value: str) -> str:
    """A UUID in canonical form, made here if empty."""
    if not value:
        return ids.new_id()
    if not _UUID.fullmatch(value):
        raise refused(field, repr(value[:64]), "a UUID in canonical lower-case form (UUIDv7), or empty")
    return value


def tenant_name(value: str) -> str:
    """A tenant; if it is empty, that of the caller's credentials if there is just one, else "default"."""
    if not value:
        return caller().own_tenant or DEFAULT_TENANT
    if not _TENANT.fullmatch(value):
        raise refused("tenant", repr(value[:80]), "1 to 64 characters of [a-z0-9_-]")
    return value


def release_version(field: str, value: int) -> int:
    """A version that a release may have; raises InvalidField."""
    if value > MAX_VERSION:
        raise refused(field, value, f"0 to {MAX_VERSION}")
    return value


def checked_tags(tags: Mapping[str, str]) -> Tags:
    """The caller's own tags, in order of their keys; no message repeats their values."""
    if not tags:
        return ()
    if len(tags) > MAX_TAGS:
        raise refused("tags", f"{len(tags)} tags", f"at most {MAX_TAGS}")
    for key, value in tags.items():
        if not _TAG.fullmatch(key):
            raise refused("tags", f"a key of {len(key.encode())} bytes", "keys of 1 to 64 characters of [a-zA-Z0-9_.-]")
        short_text(f"tags[{key}]", value, MAX_TAG_BYTES)
    return tuple(sorted(tags.items()))


def channel_name(value: str) -> Channel:
    """A channel from its written form; raises InvalidField if it has another."""
    try:
        return Channel.parse(short_text("channel", value, 2 * MAX_NAME_BYTES + 1, required=True))
    except ValueError:
        raise refused("channel", repr(value[:130]), 'of the form "domain/tenant"') from None


def _envelope(
    asked: assistant_pb2.GenerateRequest | assistant_pb2.ChooseRequest, options: Iterable[Option]
) -> Envelope:
    purpose = _PURPOSES.get(asked.purpose)
    if purpose is None:
        raise refused("purpose", asked.purpose, "one of the values of Purpose")
    return Envelope(
        interaction_id=identifier("interaction_id", asked.interaction_id),
        channel=Channel(short_text("domain", asked.domain, MAX_NAME_BYTES, required=True), tenant_name(asked.tenant)),
        purpose=purpose,
        session_id=short_text("session_id", asked.session_id, MAX_SESSION_BYTES),
        end_user=short_text("end_user", asked.end_user, MAX_PERSON_BYTES),
        rater=short_text("rater", asked.rater, MAX_PERSON_BYTES),
        request=Request(messages=_messages(asked.messages), passages=_passages(asked.passages), options=tuple(options)),
        tags=checked_tags(asked.tags),
        store=asked.consent.store if asked.consent.HasField("store") else None,
        train=asked.consent.train if asked.consent.HasField("train") else None,
    )


def _messages(messages: Sequence[assistant_pb2.Message]) -> tuple[Message, ...]:
    if len(messages) > MAX_MESSAGES:
        raise refused("messages", f"{len(messages)} messages", f"1 to {MAX_MESSAGES}")
    checked = []
    for index, message in enumerate(messages):
        if message.role not in _ROLES:
            raise refused(f"messages[{index}].role", repr(message.role[:32]), "one of " + ", ".join(_ROLES))
        checked.append(Message(message.role, short_text(f"messages[{index}].content", message.content, MAX_TEXT_BYTES)))
    if not any(message.content.strip() for message in checked):
        raise EmptyPrompt()
    return tuple(checked)


def _passages(passages: Sequence[assistant_pb2.Passage]) -> tuple[Passage, ...]:
    if len(passages) > MAX_PASSAGES:
        raise refused("passages", f"{len(passages)} passages", f"at most {MAX_PASSAGES}")
    return tuple(
        Passage(
            short_text(f"passages[{index}].passage_id", passage.passage_id, MAX_PASSAGE_ID_BYTES),
            short_text(f"passages[{index}].text", passage.text, MAX_TEXT_BYTES),
            short_text(f"passages[{index}].source", passage.source, MAX_SOURCE_BYTES),
        )
        for index, passage in enumerate(passages)
    )


def _sampling(sampling: assistant_pb2.Sampling, max_tokens: int) -> SamplingWish:
    wish = SamplingWish(
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else None,
        stop=tuple(sampling.stop),
    )
    # Comparisons with NaN are false, so each limit is written as what must hold.
    if wish.temperature is not None and not 0.0 <= wish.temperature <= MAX_TEMPERATURE:
        raise refused("sampling.temperature", wish.temperature, f"0 to {MAX_TEMPERATURE:g}")
    if wish.top_p is not None and not (0.0 < wish.top_p <= 1.0 and math.isfinite(wish.top_p)):
        raise refused("sampling.top_p", wish.top_p, "above 0, at most 1")
    if wish.top_k is not None and wish.top_k > MAX_TOP_K:
        raise refused("sampling.top_k", wish.top_k, f"0 to {MAX_TOP_K}")
    if wish.max_tokens is not None and not 1 <= wish.max_tokens <= max_tokens:
        raise refused("sampling.max_tokens", wish.max_tokens, f"1 to {max_tokens}")
    if len(wish.stop) > MAX_STOPS:
        raise refused("sampling.stop", f"{len(wish.stop)} strings", f"at most {MAX_STOPS}")
    for index, stop in enumerate(wish.stop):
        short_text(f"sampling.stop[{index}]", stop, MAX_STOP_BYTES, required=True)
    return wish
