"""What a client asks, as messages of plaudit.v1.

What enters: prompts, options and their settings, as a caller writes them. What leaves: request messages with their
idempotency key. A mistake is an InvalidField that names the field and says what to write; nothing is sent. Never talks
to the network, and never imports torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from plaudit import ids
from plaudit.errors import InvalidField
from plaudit.types import Message, Option, Passage, Purpose
from plaudit.v1 import assistant_pb2

Prompt: TypeAlias = str | Sequence[Message | Mapping[str, Any]]
Choosable: TypeAlias = str | Option | Mapping[str, str]


class AskOptions(TypedDict, total=False):
    """What every request may say beside its prompt."""

    tenant: str
    """Tenant whose traffic it is; "default" if it is left out."""
    session_id: str
    """The caller's session, at most 128 bytes."""
    end_user: str
    """Who asks; the service keeps a pseudonym."""
    rater: str
    """The only person who may give feedback; if left out, anyone who holds the handle may."""
    passages: Sequence[Passage | Mapping[str, str]]
    """Retrieved passages that the domain may render into the prompt."""
    purpose: Purpose
    """"serve" (the default), "explore" (candidates may be sampled to learn more) or "evaluate" (never learnt from)."""
    interaction_id: str
    """Idempotency key, a UUIDv7; made by the client if it is left out."""
    store: bool
    """Whether the texts may be kept; if not, no feedback is taken. If left out, the operator's settings decide."""
    train: bool
    """Whether it may be learnt from. If left out, the operator's settings decide."""
    tags: Mapping[str, str]
    """Your own tags, recorded with the interaction: at most 16. For facts about the product, never about people."""


class GenerateOptions(AskOptions, total=False):
    """What a request for completions may say; by default as the release or the domain says."""

    n: int
    """Number of completions, 1 to 8."""
    temperature: float
    """0 to 2; 0 takes the most likely token."""
    top_p: float
    """Nucleus mass, above 0 to 1."""
    top_k: int
    """Number of most likely tokens kept; 0 keeps all."""
    max_tokens: int
    """Maximum number of generated tokens."""
    stop: str | Sequence[str]
    """Text or texts that end a completion, at most 8."""
    seed: int
    """Seed of the first completion; the i-th uses seed + i."""
    release_versions: Sequence[int]
    """For operators: the release of each completion, or of all."""
    logprobs: bool
    """Whether the reply has log-probs of the tokens."""
    token_ids: bool
    """For operators: whether the reply has ids of the tokens."""


class ChooseOptions(AskOptions, total=False):
    """What a request to rank options may say."""

    release_version: int
    """For operators: the release that scores."""


# Of what a caller sent, in a message.
_LONGEST_NAME = 80
# What protobuf raises for a value that a field cannot hold.
_UNSENDABLE = (TypeError, ValueError, AttributeError, OverflowError)
_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "stop")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PURPOSES = {
    Purpose.SERVE: assistant_pb2.PURPOSE_SERVE,
    Purpose.EXPLORE: assistant_pb2.PURPOSE_EXPLORE,
    Purpose.EVALUATE: assistant_pb2.PURPOSE_EVALUATE,
}


def generate_request(domain: str, prompt: Prompt, options: GenerateOptions) -> assistant_pb2.GenerateRequest:
    """The message of a request, with its idempotency key."""
    fields: dict[str, Any] = known(options, GenerateOptions)
    sampling = {key: fields.pop(key) for key in _SAMPLING if key in fields}
    if isinstance(sampling.get("stop"), str):  # as OpenAI's clients write it
        sampling["stop"] = [sampling["stop"]]
    request: assistant_pb2.GenerateRequest = filled(
        assistant_pb2.GenerateRequest, domain=domain, **_common(prompt, fields)
    )
    request.sampling.MergeFrom(filled(assistant_pb2.Sampling, **sampling))
    return request


def choose_request(
    domain: str, prompt: Prompt, choices: Sequence[Choosable], options: ChooseOptions
) -> assistant_pb2.ChooseRequest:
    """The message of a request; a text alone is its own option_id."""
    how = "send texts, or Option(option_id, text), or objects with option_id and text"
    if isinstance(choices, str | Mapping) or not isinstance(choices, Iterable):
        raise InvalidField(f"the options are a {type(choices).__name__}; {how}, in a list", field="options")
    request: assistant_pb2.ChooseRequest = filled(
        assistant_pb2.ChooseRequest,
        domain=domain,
        options=[_option(each, how) for each in choices],
        **_common(prompt, known(options, ChooseOptions)),
    )
    return request


def messages_of(prompt: Any) -> list[assistant_pb2.Message]:
    """The conversation of a prompt: a text, or messages as Message or in OpenAI's form.

    That is `{"role": ..., "content": ...}` with the roles system, developer (taken as system), user and assistant, and
    a content that is a text or a list of parts of type text. Tools and images are refused by name.
    """
    how = 'send a text, or a list of Message("user", "...") or of {"role": "user", "content": "..."}'
    if isinstance(prompt, str):
        return [filled(assistant_pb2.Message, role="user", content=prompt)]
    if isinstance(prompt, Mapping | Message) or not isinstance(prompt, Iterable):
        raise InvalidField(f"the prompt is a {type(prompt).__name__}; {how}", field="messages")
    found = []
    for index, each in enumerate(prompt):
        field = f"messages[{index}]"
        if isinstance(each, Message):
            found.append(filled(assistant_pb2.Message, role=each.role, content=each.content))
        elif isinstance(each, Mapping):
            found.append(_from_object(each, field))
        else:
            raise InvalidField(f"{field} is a {type(each).__name__}; {how}", field=field)
    return found


def known(options: Any, kind: Any) -> dict[str, Any]:
    """`options` as a dictionary; raises InvalidField for a name that `kind` (a TypedDict) does not have."""
    names = tuple(kind.__annotations__)
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(names))}"
            raise InvalidField(f"there is no option {name!r}; {hint}", field=name)
    return dict(options)


def filled(message: Any, **fields: Any) -> Any:
    """A message with `fields`; raises InvalidField that names the field whose value protobuf refuses."""
    for name, value in fields.items():
        # A text is a list of characters too, and nobody means that.
        if isinstance(value, str) and message.DESCRIPTOR.fields_by_name[name].is_repeated:
            raise InvalidField(f"{name} is the text {_short(value)}; send a list of texts", field=name)
    try:
        return message(**fields)
    except _UNSENDABLE:
        for name, value in fields.items():
            try:
                message(**{name: value})
            except _UNSENDABLE as error:
                raise InvalidField(f"{name} is {_short(value)}, which cannot be sent: {error}", field=name) from error
        raise


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[:_LONGEST_NAME]}..."


def _from_object(each: Mapping[str, Any], field: str) -> assistant_pb2.Message:
    role = each.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidField(
            f"{field}.role is not supported; use system, developer, user or assistant", field=f"{field}.role"
        )
    for name in set(each) - {"role", "content", "name", "refusal"}:
        if each[name]:
            wrong = f"{field}.{name}"[:_LONGEST_NAME]
            raise InvalidField(f"{wrong} is not supported here; leave it out", field=wrong)
    message: assistant_pb2.Message = filled(
        assistant_pb2.Message, role=_ROLES[role], content=_content(each.get("content"), field)
    )
    return message


def _content(content: Any, field: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    raise InvalidField(f"{field}.content is neither a text nor a list of parts of type text", field=f"{field}.content")


def _option(each: Any, how: str) -> Any:
    if isinstance(each, str):
        each = Option(each, each)
    if isinstance(each, Mapping) and set(each) == {"option_id", "text"}:
        each = Option(each["option_id"], each["text"])
    if not isinstance(each, Option):
        raise InvalidField(f"an option is a {type(each).__name__}; {how}", field="options")
    return filled(assistant_pb2.Option, option_id=each.option_id, text=each.text)


def _passage(each: Any) -> Any:
    if isinstance(each, Mapping) and {"passage_id", "text"} <= set(each) <= {"passage_id", "text", "source"}:
        each = Passage(**each)
    if not isinstance(each, Passage):
        raise InvalidField(
            f"a passage is a {type(each).__name__}; send Passage(passage_id, text, source) or objects with these",
            field="passages",
        )
    return filled(assistant_pb2.Passage, passage_id=each.passage_id, text=each.text, source=each.source)


def _common(prompt: Prompt, fields: dict[str, Any]) -> dict[str, Any]:
    fields.setdefault("interaction_id", ids.new_id())
    purpose = fields.pop("purpose", Purpose.SERVE)
    if not isinstance(purpose, str) or purpose not in _PURPOSES:
        raise InvalidField(f"purpose is {purpose!r}; use serve, explore or evaluate", field="purpose")
    agreed = {name: fields.pop(name) for name in ("store", "train") if name in fields}
    if agreed:
        fields["consent"] = filled(assistant_pb2.Consent, **agreed)
    return {
        **fields,
        "messages": messages_of(prompt),
        "passages": [_passage(each) for each in fields.pop("passages", ())],
        "purpose": _PURPOSES[Purpose(purpose)],
    }
