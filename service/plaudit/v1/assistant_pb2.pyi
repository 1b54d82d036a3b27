import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_UNSPECIFIED: _ClassVar[Purpose]
    PURPOSE_SERVE: _ClassVar[Purpose]
    PURPOSE_EXPLORE: _ClassVar[Purpose]
    PURPOSE_EVALUATE: _ClassVar[Purpose]
    PURPOSE_IMPORTED: _ClassVar[Purpose]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_EOS: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
PURPOSE_UNSPECIFIED: Purpose
PURPOSE_SERVE: Purpose
PURPOSE_EXPLORE: Purpose
PURPOSE_EVALUATE: Purpose
PURPOSE_IMPORTED: Purpose
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_EOS: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason

class Message(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Passage(_message.Message):
    __slots__ = ("passage_id", "text", "source")
    PASSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    passage_id: str
    text: str
    source: str
    def __init__(self, passage_id: _Optional[str] = ..., text: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "max_tokens", "stop")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class Consent(_message.Message):
    __slots__ = ("store", "train")
    STORE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    store: bool
    train: bool
    def __init__(self, store: _Optional[bool] = ..., train: _Optional[bool] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("interaction_id", "domain", "tenant", "session_id", "end_user", "rater", "messages", "passages", "n", "sampling", "seed", "purpose", "release_versions", "tags", "logprobs", "token_ids", "consent")
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
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    domain: str
    tenant: str
    session_id: str
    end_user: str
    rater: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    passages: _containers.RepeatedCompositeFieldContainer[Passage]
    n: int
    sampling: Sampling
    seed: int
    purpose: Purpose
    release_versions: _containers.RepeatedScalarFieldContainer[int]
    tags: _containers.ScalarMap[str, str]
    logprobs: bool
    token_ids: bool
    consent: Consent
    def __init__(self, interaction_id: _Optional[str] = ..., domain: _Optional[str] = ..., tenant: _Optional[str] = ..., session_id: _Optional[str] = ..., end_user: _Optional[str] = ..., rater: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., passages: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ..., n: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., seed: _Optional[int] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., release_versions: _Optional[_Iterable[int]] = ..., tags: _Optional[_Mapping[str, str]] = ..., logprobs: _Optional[bool] = ..., token_ids: _Optional[bool] = ..., consent: _Optional[_Union[Consent, _Mapping]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("text", "logprob")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    text: str
    logprob: float
    def __init__(self, text: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class Completion(_message.Message):
    __slots__ = ("candidate_id", "text", "release_version", "release_digest", "finish_reason", "tokens", "logprob_raw", "valid", "token_ids", "logprobs")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_RAW_FIELD_NUMBER: _ClassVar[int]
    VALID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    text: str
    release_version: int
    release_digest: str
    finish_reason: FinishReason
    tokens: int
    logprob_raw: float
    valid: bool
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, candidate_id: _Optional[str] = ..., text: _Optional[str] = ..., release_version: _Optional[int] = ..., release_digest: _Optional[str] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., tokens: _Optional[int] = ..., logprob_raw: _Optional[float] = ..., valid: _Optional[bool] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("interaction_id", "completions", "handle", "handle_expires_at", "prompt_tokens")
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETIONS_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    HANDLE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    completions: _containers.RepeatedCompositeFieldContainer[Completion]
    handle: str
    handle_expires_at: _timestamp_pb2.Timestamp
    prompt_tokens: int
    def __init__(self, interaction_id: _Optional[str] = ..., completions: _Optional[_Iterable[_Union[Completion, _Mapping]]] = ..., handle: _Optional[str] = ..., handle_expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class StreamGenerateRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping]] = ...) -> None: ...

class StreamGenerateResponse(_message.Message):
    __slots__ = ("delta", "done", "begun")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    delta: TextDelta
    done: GenerateResponse
    begun: StreamBegun
    def __init__(self, delta: _Optional[_Union[TextDelta, _Mapping]] = ..., done: _Optional[_Union[GenerateResponse, _Mapping]] = ..., begun: _Optional[_Union[StreamBegun, _Mapping]] = ...) -> None: ...

class StreamBegun(_message.Message):
    __slots__ = ("interaction_id", "candidate_ids", "handle", "handle_expires_at")
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    HANDLE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    candidate_ids: _containers.RepeatedScalarFieldContainer[str]
    handle: str
    handle_expires_at: _timestamp_pb2.Timestamp
    def __init__(self, interaction_id: _Optional[str] = ..., candidate_ids: _Optional[_Iterable[str]] = ..., handle: _Optional[str] = ..., handle_expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("index", "text")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Option(_message.Message):
    __slots__ = ("option_id", "text")
    OPTION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    option_id: str
    text: str
    def __init__(self, option_id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class ChooseRequest(_message.Message):
    __slots__ = ("interaction_id", "domain", "tenant", "session_id", "end_user", "rater", "messages", "passages", "options", "purpose", "release_version", "tags", "consent")
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
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PASSAGES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    domain: str
    tenant: str
    session_id: str
    end_user: str
    rater: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    passages: _containers.RepeatedCompositeFieldContainer[Passage]
    options: _containers.RepeatedCompositeFieldContainer[Option]
    purpose: Purpose
    release_version: int
    tags: _containers.ScalarMap[str, str]
    consent: Consent
    def __init__(self, interaction_id: _Optional[str] = ..., domain: _Optional[str] = ..., tenant: _Optional[str] = ..., session_id: _Optional[str] = ..., end_user: _Optional[str] = ..., rater: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., passages: _Optional[_Iterable[_Union[Passage, _Mapping]]] = ..., options: _Optional[_Iterable[_Union[Option, _Mapping]]] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., release_version: _Optional[int] = ..., tags: _Optional[_Mapping[str, str]] = ..., consent: _Optional[_Union[Consent, _Mapping]] = ...) -> None: ...

class RankedOption(_message.Message):
    __slots__ = ("option_id", "candidate_id", "probability", "logprob")
    OPTION_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    option_id: str
    candidate_id: str
    probability: float
    logprob: float
    def __init__(self, option_id: _Optional[str] = ..., candidate_id: _Optional[str] = ..., probability: _Optional[float] = ..., logprob: _Optional[float] = ...) -> None: ...

class ChooseResponse(_message.Message):
    __slots__ = ("interaction_id", "ranking", "release_version", "release_digest", "handle", "handle_expires_at", "decision")
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    RELEASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    HANDLE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    ranking: _containers.RepeatedCompositeFieldContainer[RankedOption]
    release_version: int
    release_digest: str
    handle: str
    handle_expires_at: _timestamp_pb2.Timestamp
    decision: str
    def __init__(self, interaction_id: _Optional[str] = ..., ranking: _Optional[_Iterable[_Union[RankedOption, _Mapping]]] = ..., release_version: _Optional[int] = ..., release_digest: _Optional[str] = ..., handle: _Optional[str] = ..., handle_expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., decision: _Optional[str] = ...) -> None: ...
