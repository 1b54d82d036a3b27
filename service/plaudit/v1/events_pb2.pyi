import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from plaudit.v1 import assistant_pb2 as _assistant_pb2
from plaudit.v1 import errors_pb2 as _errors_pb2
from plaudit.v1 import feedback_pb2 as _feedback_pb2
from plaudit.v1 import releases_pb2 as _releases_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTION_UNSPECIFIED: _ClassVar[Action]
    ACTION_COMPLETION: _ClassVar[Action]
    ACTION_CHOICE: _ClassVar[Action]
ACTION_UNSPECIFIED: Action
ACTION_COMPLETION: Action
ACTION_CHOICE: Action

class Envelope(_message.Message):
    __slots__ = ("event_id", "occurred_at", "producer", "schema", "traceparent", "interaction", "feedback", "retraction", "release", "rejected", "sealed")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    OCCURRED_AT_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    RETRACTION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    occurred_at: _timestamp_pb2.Timestamp
    producer: str
    schema: int
    traceparent: str
    interaction: InteractionRecorded
    feedback: FeedbackRecorded
    retraction: FeedbackRetracted
    release: ReleaseChanged
    rejected: RecordRejected
    sealed: Sealed
    def __init__(self, event_id: _Optional[str] = ..., occurred_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., producer: _Optional[str] = ..., schema: _Optional[int] = ..., traceparent: _Optional[str] = ..., interaction: _Optional[_Union[InteractionRecorded, _Mapping]] = ..., feedback: _Optional[_Union[FeedbackRecorded, _Mapping]] = ..., retraction: _Optional[_Union[FeedbackRetracted, _Mapping]] = ..., release: _Optional[_Union[ReleaseChanged, _Mapping]] = ..., rejected: _Optional[_Union[RecordRejected, _Mapping]] = ..., sealed: _Optional[_Union[Sealed, _Mapping]] = ...) -> None: ...

class Sealed(_message.Message):
    __slots__ = ("key_id", "interaction_id", "domain", "tenant", "nonce", "ciphertext", "schema")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    interaction_id: str
    domain: str
    tenant: str
    nonce: bytes
    ciphertext: bytes
    schema: int
    def __init__(self, key_id: _Optional[str] = ..., interaction_id: _Optional[str] = ..., domain: _Optional[str] = ..., tenant: _Optional[str] = ..., nonce: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ..., schema: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("candidate_id", "release_version", "release_digest", "prompt_tokens", "tokens", "logprobs_raw", "logprobs_sampled", "text", "displayed_text", "finish_reason", "sampling", "seed", "width", "propensity", "redacted", "valid", "option_id", "probability", "place")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_RAW_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_SAMPLED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DISPLAYED_TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REDACTED_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    OPTION_ID_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    release_version: int
    release_digest: str
    prompt_tokens: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs_raw: _containers.RepeatedScalarFieldContainer[float]
    logprobs_sampled: _containers.RepeatedScalarFieldContainer[float]
    text: str
    displayed_text: str
    finish_reason: _assistant_pb2.FinishReason
    sampling: _assistant_pb2.Sampling
    seed: int
    width: int
    propensity: float
    redacted: bool
    valid: bool
    option_id: str
    probability: float
    place: int
    def __init__(self, candidate_id: _Optional[str] = ..., release_version: _Optional[int] = ..., release_digest: _Optional[str] = ..., prompt_tokens: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., logprobs_raw: _Optional[_Iterable[float]] = ..., logprobs_sampled: _Optional[_Iterable[float]] = ..., text: _Optional[str] = ..., displayed_text: _Optional[str] = ..., finish_reason: _Optional[_Union[_assistant_pb2.FinishReason, str]] = ..., sampling: _Optional[_Union[_assistant_pb2.Sampling, _Mapping]] = ..., seed: _Optional[int] = ..., width: _Optional[int] = ..., propensity: _Optional[float] = ..., redacted: _Optional[bool] = ..., valid: _Optional[bool] = ..., option_id: _Optional[str] = ..., probability: _Optional[float] = ..., place: _Optional[int] = ...) -> None: ...

class InteractionRecorded(_message.Message):
    __slots__ = ("interaction_id", "domain", "tenant", "session_id", "end_user", "rater", "purpose", "action", "messages", "passages", "prompt_group", "candidates", "plugin_version", "base_digest", "completed_at", "schema", "prompt_tokens", "order_logprob", "answers", "policy_version", "decision", "tags", "base_dtype", "not_stored", "not_trained")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    END_USER_FIELD_NUMBER: _ClassVar[int]
    RATER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_GROUP_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_AT_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ORDER_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    BASE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    NOT_STORED_FIELD_NUMBER: _ClassVar[int]
    NOT_TRAINED_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    domain: str
    tenant: str
    session_id: str
    end_user: str
    rater: str
    purpose: _assistant_pb2.Purpose
    action: Action
    messages: _containers.RepeatedCompositeFieldContainer[_assistant_pb2.Message]
    passages: _containers.RepeatedCompositeFieldContainer[_assistant_pb2.Passage]
    prompt_group: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    plugin_version: str
    base_digest: str
    completed_at: _timestamp_pb2.Timestamp
    schema: int
    prompt_tokens: _containers.RepeatedScalarFieldContainer[int]
    order_logprob: float
    answers: _containers.RepeatedScalarFieldContainer[bytes]
    policy_version: str
    decision: str
    tags: _containers.ScalarMap[str, str]
    base_dtype: str
    not_stored: bool
    not_trained: bool
    def __init__(self, interaction_id: _Optional[str] = ..., domain: _Optional[str] = ..., tenant: _Optional[str] = ..., session_id: _Optional[str] = ..., end_user: _Optional[str] = ..., rater: _Optional[str] = ..., purpose: _Optional[_Union[_assistant_pb2.Purpose, str]] = ..., action: _Optional[_Union[Action, str]] = ..., messages: _Optional[_Iterable[_Union[_assistant_pb2.Message, _Mapping]]] = ..., passages: _Optional[_Iterable[_Union[_assistant_pb2.Passage, _Mapping]]] = ..., prompt_group: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., plugin_version: _Optional[str] = ..., base_digest: _Optional[str] = ..., completed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., schema: _Optional[int] = ..., prompt_tokens: _Optional[_Iterable[int]] = ..., order_logprob: _Optional[float] = ..., answers: _Optional[_Iterable[bytes]] = ..., policy_version: _Optional[str] = ..., decision: _Optional[str] = ..., tags: _Optional[_Mapping[str, str]] = ..., base_dtype: _Optional[str] = ..., not_stored: _Optional[bool] = ..., not_trained: _Optional[bool] = ...) -> None: ...

class FeedbackRecorded(_message.Message):
    __slots__ = ("feedback", "interaction_id", "domain", "tenant", "accepted_at", "body_digest", "schema", "answer")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    BODY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    feedback: _feedback_pb2.Feedback
    interaction_id: str
    domain: str
    tenant: str
    accepted_at: _timestamp_pb2.Timestamp
    body_digest: bytes
    schema: int
    answer: bytes
    def __init__(self, feedback: _Optional[_Union[_feedback_pb2.Feedback, _Mapping]] = ..., interaction_id: _Optional[str] = ..., domain: _Optional[str] = ..., tenant: _Optional[str] = ..., accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., body_digest: _Optional[bytes] = ..., schema: _Optional[int] = ..., answer: _Optional[bytes] = ...) -> None: ...

class FeedbackRetracted(_message.Message):
    __slots__ = ("feedback_id", "interaction_id", "domain", "tenant", "rater", "session_id", "accepted_at", "schema")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    RATER_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    interaction_id: str
    domain: str
    tenant: str
    rater: str
    session_id: str
    accepted_at: _timestamp_pb2.Timestamp
    schema: int
    def __init__(self, feedback_id: _Optional[str] = ..., interaction_id: _Optional[str] = ..., domain: _Optional[str] = ..., tenant: _Optional[str] = ..., rater: _Optional[str] = ..., session_id: _Optional[str] = ..., accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., schema: _Optional[int] = ...) -> None: ...

class ReleaseChanged(_message.Message):
    __slots__ = ("state", "release", "actor", "reason", "schema")
    STATE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    state: _releases_pb2.ChannelState
    release: _releases_pb2.Release
    actor: str
    reason: str
    schema: int
    def __init__(self, state: _Optional[_Union[_releases_pb2.ChannelState, _Mapping]] = ..., release: _Optional[_Union[_releases_pb2.Release, _Mapping]] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., schema: _Optional[int] = ...) -> None: ...

class RecordRejected(_message.Message):
    __slots__ = ("reason", "message", "topic", "partition", "offset", "key", "value", "schema", "headers")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    reason: _errors_pb2.ErrorReason
    message: str
    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    schema: int
    headers: _containers.RepeatedCompositeFieldContainer[RecordHeader]
    def __init__(self, reason: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ..., topic: _Optional[str] = ..., partition: _Optional[int] = ..., offset: _Optional[int] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., schema: _Optional[int] = ..., headers: _Optional[_Iterable[_Union[RecordHeader, _Mapping]]] = ...) -> None: ...

class RecordHeader(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: bytes
    def __init__(self, name: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
