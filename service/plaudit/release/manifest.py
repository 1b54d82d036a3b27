"""What a release is made of: one frozen JSON document whose SHA-256 is the release's digest.

Enters: what the learner knows about a release. Leaves: canonical JSON (sorted keys, no spaces, UTF-8), from which
anybody recomputes the digest. Never holds evidence or weights, only their digests; never reads or writes a file.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from plaudit.types import Channel

MANIFEST_NAME = "manifest.json"
ADAPTER_WEIGHTS = "policy/adapter_model.safetensors"
# Fields that came after v0.1.0: unset they are left out, so that older manifests keep their text and their digest.
_ADDED_LATER = frozenset({"base_dtype", "generation", "newest_feedback_at"})
# A pickle runs code when it is read; none of these can.
ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".md"})

_PATH_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def _channel(value: object) -> object:
    return Channel.parse(value) if isinstance(value, str) else value


def _in_utc(value: dt.datetime) -> dt.datetime:
    return value.astimezone(dt.UTC)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Utc = Annotated[AwareDatetime, AfterValidator(_in_utc)]
ChannelText = Annotated[Channel, BeforeValidator(_channel), PlainSerializer(str, return_type=str)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Adapter(_Frozen):
    """The policy's LoRA adapter. `digest` is the SHA-256 of `policy/adapter_model.safetensors`."""

    digest: Sha256
    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    layers: int = Field(ge=1)


class Offsets(_Frozen):
    """Records of one partition that the evidence covers: `first` up to, not including, `next`.

    `topic_id` is the topic's identity: one that was made anew has other records under the same offsets.
    """

    topic: str
    partition: int = Field(ge=0)
    first: int = Field(ge=0)
    next: int = Field(ge=0)
    topic_id: str | None = None

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Manifests of v0.1.0 have no identity, and keep their text and digest.
        return {name: value for name, value in dump(self).items() if value is not None}


class Probe(_Frozen):
    """A completion and the trainer's log-probs of it, for the proof that what is served is what was trained.

    `logprobs`: nats, one per completion token, under softmax(logits / temperature).
    """

    prompt_tokens: tuple[int, ...]
    completion_tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @model_validator(mode="after")
    def _one_logprob_a_token(self) -> Self:
        if len(self.completion_tokens) != len(self.logprobs):
            raise ValueError(
                f"a probe has {len(self.completion_tokens)} completion tokens and {len(self.logprobs)} log-probs; "
                "give one for each token"
            )
        return self


class Manifest(_Frozen):
    """Everything that a release came from and consists of."""

    channel: ChannelText
    """Channel that the release belongs to, written "domain/tenant"."""
    version: int | None = Field(default=None, ge=0)
    """Version in the channel; None until the registry has taken one."""
    parent: int | None = Field(default=None, ge=0)
    """Version from which training started."""
    generation: int | None = Field(default=None, ge=0)
    """Generation of the channel when the turn began: from it alone the learner may promote the release."""
    base_digest: str = Field(min_length=1)
    """Digest of the frozen base, under which alone the adapter means anything."""
    base_dtype: str | None = None
    """Number format in which the probes' log-probs were computed ("float32"); the proof's tolerance depends on it."""
    temperature: float = Field(default=1.0, gt=0)
    """The policy is softmax(logits / temperature); the release's default at serving."""
    adapter: Adapter | None = None
    """The policy's adapter; None for the base."""
    reward_model: Sha256 | None = None
    """Digest of the reward model (`folder_digest` of its artifacts)."""
    salt: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Salt of the channel's splits, in hex; version 0 carries it, no other."""
    as_of: Utc | None = None
    """Time as of which evidence was weighed (decay needs it)."""
    newest_feedback_at: Utc | None = None
    """When the newest act was acknowledged that the release learnt from."""
    offsets: tuple[Offsets, ...] = ()
    """Log records that the evidence covers."""
    evidence_digest: str | None = None
    """Digest of the frozen evidence."""
    evidence_counts: dict[str, int] = Field(default_factory=dict)
    """Evidence by kind."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Settings in force, proof tolerances included."""
    seeds: dict[str, int] = Field(default_factory=dict)
    """Seeds by purpose."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of python, the libraries that train, plaudit and each plugin (`plugin:<domain>`), and the processor's
    instructions."""
    kl: float | None = None
    """KL to the base, nats per sequence, at the policy's temperature."""
    created_at: Utc = Field(default_factory=lambda: dt.datetime.now(dt.UTC))
    """When training ended."""
    probes: tuple[Probe, ...] = ()
    """Probes of the served-policy proof."""
    artifacts: dict[str, Sha256] = Field(default_factory=dict)
    """SHA-256 of every file of the release by relative path, this manifest excepted."""

    @field_validator("artifacts")
    @classmethod
    def _paths_stay_inside(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            check_artifact_path(path)
        return value

    @model_validator(mode="after")
    def _salt_belongs_to_the_base(self) -> Self:
        if (self.version == 0) != (self.salt is not None):
            raise ValueError(f"version {self.version} of {self.channel}: version 0 carries the salt, and no other")
        return self

    def to_json(self) -> str:
        """Canonical JSON: equal manifests give equal text."""
        values = self.model_dump(mode="json")
        return canonical_json({k: v for k, v in values.items() if k not in _ADDED_LATER or v is not None})

    def to_json_for_readers(self) -> str:
        """The same without the salt, which leaves the registry to nobody: it tells which prompts the gate will ask."""
        values: dict[str, Any] = json.loads(self.to_json())
        if self.salt is not None:  # of later versions it is the manifest itself
            del values["salt"]
        return canonical_json(values)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The manifest that `to_json` wrote; raises ValueError for anything else."""
        return cls.model_validate_json(text)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated as a whole."""
        return type(self).model_validate({**dict(self), **changes})


def canonical_json(value: object) -> str:
    """JSON with sorted keys, without spaces, in UTF-8; refuses NaN and infinities, which JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def check_artifact_path(path: str) -> None:
    """Raises ValueError for a path that leaves the release's folder, is hidden, or may hold a pickle."""
    parts = path.split("/")
    if path == MANIFEST_NAME:
        raise ValueError(f"artifact {path!r} would overwrite the manifest; name it otherwise")
    if not all(_PATH_PART.fullmatch(part) for part in parts):
        raise ValueError(f"artifact path {path!r} must be relative, with parts of letters, digits, '.', '_' and '-'")
    if PurePosixPath(path).suffix not in ALLOWED_SUFFIXES:
        allowed = ", ".join(sorted(ALLOWED_SUFFIXES))
        raise ValueError(f"artifact {path!r} is of a kind that may run code when read; write one of {allowed}")


def folder_digest(artifacts: Mapping[str, str], folder: str) -> str:
    """SHA-256 over the paths and digests of the artifacts under `folder`, in order of path."""
    inside = {path: digest for path, digest in artifacts.items() if path.startswith(f"{folder}/")}
    return hashlib.sha256(canonical_json(inside).encode()).hexdigest()
