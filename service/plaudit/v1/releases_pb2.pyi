import datetime

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
    __slots__ = ("channel", "version", "digest", "state", "created_at", "decision_json")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    DECISION_JSON_FIELD_NUMBER: _ClassVar[int]
    channel: str
    version: int
    digest: str
    state: ReleaseState
    created_at: _timestamp_pb2.Timestamp
    decision_json: str
    def __init__(self, channel: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., state: _Optional[_Union[ReleaseState, str]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decision_json: _Optional[str] = ...) -> None: ...

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

class ListReleasesRequest(_message.Message):
    __slots__ = ("channel",)
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    channel: str
    def __init__(self, channel: _Optional[str] = ...) -> None: ...

class ListReleasesResponse(_message.Message):
    __slots__ = ("releases", "state")
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    state: ChannelState
    def __init__(self, releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., state: _Optional[_Union[ChannelState, _Mapping]] = ...) -> None: ...

class GetReleaseRequest(_message.Message):
    __slots__ = ("channel", "version")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    channel: str
    version: int
    def __init__(self, channel: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetReleaseResponse(_message.Message):
    __slots__ = ("release", "manifest_json")
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    release: Release
    manifest_json: str
    def __init__(self, release: _Optional[_Union[Release, _Mapping]] = ..., manifest_json: _Optional[str] = ...) -> None: ...

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
