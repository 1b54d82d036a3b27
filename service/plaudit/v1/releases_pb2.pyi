import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReleaseState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RELEASE_STATE_UNSPECIFIED: _ClassVar[ReleaseState]
    RELEASE_STATE_TRAINED: _ClassVar[ReleaseState]
    RELEASE_STATE_GATED: _ClassVar[ReleaseState]
    RELEASE_STATE_SHADOW: _ClassVar[ReleaseState]
    RELEASE_STATE_CANARY: _ClassVar[ReleaseState]
    RELEASE_STATE_LIVE: _ClassVar[ReleaseState]
    RELEASE_STATE_RETIRED: _ClassVar[ReleaseState]
    RELEASE_STATE_REJECTED: _ClassVar[ReleaseState]
    RELEASE_STATE_ROLLED_BACK: _ClassVar[ReleaseState]
RELEASE_STATE_UNSPECIFIED: ReleaseState
RELEASE_STATE_TRAINED: ReleaseState
RELEASE_STATE_GATED: ReleaseState
RELEASE_STATE_SHADOW: ReleaseState
RELEASE_STATE_CANARY: ReleaseState
RELEASE_STATE_LIVE: ReleaseState
RELEASE_STATE_RETIRED: ReleaseState
RELEASE_STATE_REJECTED: ReleaseState
RELEASE_STATE_ROLLED_BACK: ReleaseState

class Release(_message.Message):
    __slots__ = ("channel", "version", "digest", "state", "created_at", "decision_json", "gate")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    DECISION_JSON_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    channel: str
    version: int
    digest: str
    state: ReleaseState
    created_at: _timestamp_pb2.Timestamp
    decision_json: str
    gate: GateReport
    def __init__(self, channel: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[ReleaseState, str]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decision_json: _Optional[str] = ..., gate: _Optional[_Union[GateReport, _Mapping]] = ...) -> None: ...

class GateReport(_message.Message):
    __slots__ = ("accepted", "checks", "decided_at")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    checks: _containers.RepeatedCompositeFieldContainer[GateCheck]
    decided_at: _timestamp_pb2.Timestamp
    def __init__(self, accepted: _Optional[bool] = ..., checks: _Optional[_Iterable[_Union[GateCheck, _Mapping]]] = ..., decided_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GateCheck(_message.Message):
    __slots__ = ("name", "passed", "value", "threshold", "low", "high", "note")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PASSED_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    passed: bool
    value: float
    threshold: float
    low: float
    high: float
    note: str
    def __init__(self, name: _Optional[str] = ..., passed: _Optional[bool] = ..., value: _Optional[float] = ..., threshold: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class ReleaseAdapter(_message.Message):
    __slots__ = ("digest", "rank", "alpha", "layers")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    rank: int
    alpha: int
    layers: int
    def __init__(self, digest: _Optional[str] = ..., rank: _Optional[int] = ..., alpha: _Optional[int] = ..., layers: _Optional[int] = ...) -> None: ...

class CoveredOffsets(_message.Message):
    __slots__ = ("topic", "partition", "first", "next")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    topic: str
    partition: int
    first: int
    next: int
    def __init__(self, topic: _Optional[str] = ..., partition: _Optional[int] = ..., first: _Optional[int] = ..., next: _Optional[int] = ...) -> None: ...

class ReleaseManifest(_message.Message):
    __slots__ = ("channel", "version", "parent", "generation", "base_digest", "base_dtype", "temperature", "adapter", "reward_model", "as_of", "newest_feedback_at", "offsets", "evidence_digest", "evidence_counts", "settings", "seeds", "versions", "kl", "created_at", "probes", "artifacts")
    class EvidenceCountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class SeedsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ArtifactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FEEDBACK_AT_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_COUNTS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    channel: str
    version: int
    parent: int
    generation: int
    base_digest: str
    base_dtype: str
    temperature: float
    adapter: ReleaseAdapter
    reward_model: str
    as_of: _timestamp_pb2.Timestamp
    newest_feedback_at: _timestamp_pb2.Timestamp
    offsets: _containers.RepeatedCompositeFieldContainer[CoveredOffsets]
    evidence_digest: str
    evidence_counts: _containers.ScalarMap[str, int]
    settings: _struct_pb2.Struct
    seeds: _containers.ScalarMap[str, int]
    versions: _containers.ScalarMap[str, str]
    kl: float
    created_at: _timestamp_pb2.Timestamp
    probes: int
    artifacts: _containers.ScalarMap[str, str]
    def __init__(self, channel: _Optional[str] = ..., version: _Optional[int] = ..., parent: _Optional[int] = ..., generation: _Optional[int] = ..., base_digest: _Optional[str] = ..., base_dtype: _Optional[str] = ..., temperature: _Optional[float] = ..., adapter: _Optional[_Union[ReleaseAdapter, _Mapping]] = ..., reward_model: _Optional[str] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., newest_feedback_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., offsets: _Optional[_Iterable[_Union[CoveredOffsets, _Mapping]]] = ..., evidence_digest: _Optional[str] = ..., evidence_counts: _Optional[_Mapping[str, int]] = ..., settings: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., seeds: _Optional[_Mapping[str, int]] = ..., versions: _Optional[_Mapping[str, str]] = ..., kl: _Optional[float] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., probes: _Optional[int] = ..., artifacts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ChannelState(_message.Message):
    __slots__ = ("channel", "generation", "live", "canary", "pinned")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    channel: str
    generation: int
    live: int
    canary: int
    pinned: bool
    def __init__(self, channel: _Optional[str] = ..., generation: _Optional[int] = ..., live: _Optional[int] = ..., canary: _Optional[int] = ..., pinned: _Optional[bool] = ...) -> None: ...

class ListChannelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListChannelsResponse(_message.Message):
    __slots__ = ("channels", "next_page_token")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    channels: _containers.RepeatedCompositeFieldContainer[ChannelState]
    next_page_token: str
    def __init__(self, channels: _Optional[_Iterable[_Union[ChannelState, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListReleasesRequest(_message.Message):
    __slots__ = ("channel", "page_size", "page_token")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    channel: str
    page_size: int
    page_token: str
    def __init__(self, channel: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReleasesResponse(_message.Message):
    __slots__ = ("releases", "state", "next_page_token")
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    state: ChannelState
    next_page_token: str
    def __init__(self, releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., state: _Optional[_Union[ChannelState, _Mapping]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetReleaseRequest(_message.Message):
    __slots__ = ("channel", "version")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    channel: str
    version: int
    def __init__(self, channel: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetReleaseResponse(_message.Message):
    __slots__ = ("release", "manifest_json", "manifest")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    release: Release
    manifest_json: str
    manifest: ReleaseManifest
    def __init__(self, release: _Optional[_Union[Release, _Mapping]] = ..., manifest_json: _Optional[str] = ..., manifest: _Optional[_Union[ReleaseManifest, _Mapping]] = ...) -> None: ...

class WatchReleasesRequest(_message.Message):
    __slots__ = ("channel",)
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    channel: str
    def __init__(self, channel: _Optional[str] = ...) -> None: ...

class WatchReleasesResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: ChannelState
    def __init__(self, state: _Optional[_Union[ChannelState, _Mapping]] = ...) -> None: ...

class PromoteReleaseRequest(_message.Message):
    __slots__ = ("channel", "version", "expected_generation", "reason")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    channel: str
    version: int
    expected_generation: int
    reason: str
    def __init__(self, channel: _Optional[str] = ..., version: _Optional[int] = ..., expected_generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PromoteReleaseResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: ChannelState
    def __init__(self, state: _Optional[_Union[ChannelState, _Mapping]] = ...) -> None: ...

class RollBackReleaseRequest(_message.Message):
    __slots__ = ("channel", "to_version", "expected_generation", "reason")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    channel: str
    to_version: int
    expected_generation: int
    reason: str
    def __init__(self, channel: _Optional[str] = ..., to_version: _Optional[int] = ..., expected_generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class RollBackReleaseResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: ChannelState
    def __init__(self, state: _Optional[_Union[ChannelState, _Mapping]] = ...) -> None: ...

class PinReleaseRequest(_message.Message):
    __slots__ = ("channel", "pinned", "expected_generation", "reason")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    channel: str
    pinned: bool
    expected_generation: int
    reason: str
    def __init__(self, channel: _Optional[str] = ..., pinned: _Optional[bool] = ..., expected_generation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class PinReleaseResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: ChannelState
    def __init__(self, state: _Optional[_Union[ChannelState, _Mapping]] = ...) -> None: ...
