import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PairOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PAIR_OUTCOME_UNSPECIFIED: _ClassVar[PairOutcome]
    PAIR_OUTCOME_FIRST: _ClassVar[PairOutcome]
    PAIR_OUTCOME_SECOND: _ClassVar[PairOutcome]
    PAIR_OUTCOME_TIE: _ClassVar[PairOutcome]
PAIR_OUTCOME_UNSPECIFIED: PairOutcome
PAIR_OUTCOME_FIRST: PairOutcome
PAIR_OUTCOME_SECOND: PairOutcome
PAIR_OUTCOME_TIE: PairOutcome

class EvidenceRow(_message.Message):
    __slots__ = ("interaction_id", "feedback_id", "index", "kind", "who", "accepted_at", "prompt_group", "domain", "tenant", "pair", "ranking", "binary", "scalar", "demo", "label", "schema")
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_GROUP_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    BINARY_FIELD_NUMBER: _ClassVar[int]
    SCALAR_FIELD_NUMBER: _ClassVar[int]
    DEMO_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    interaction_id: str
    feedback_id: str
    index: int
    kind: str
    who: str
    accepted_at: _timestamp_pb2.Timestamp
    prompt_group: str
    domain: str
    tenant: str
    pair: PairEvidence
    ranking: RankingEvidence
    binary: BinaryEvidence
    scalar: ScalarEvidence
    demo: DemoEvidence
    label: LabelEvidence
    schema: int
    def __init__(self, interaction_id: _Optional[str] = ..., feedback_id: _Optional[str] = ..., index: _Optional[int] = ..., kind: _Optional[str] = ..., who: _Optional[str] = ..., accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., prompt_group: _Optional[str] = ..., domain: _Optional[str] = ..., tenant: _Optional[str] = ..., pair: _Optional[_Union[PairEvidence, _Mapping]] = ..., ranking: _Optional[_Union[RankingEvidence, _Mapping]] = ..., binary: _Optional[_Union[BinaryEvidence, _Mapping]] = ..., scalar: _Optional[_Union[ScalarEvidence, _Mapping]] = ..., demo: _Optional[_Union[DemoEvidence, _Mapping]] = ..., label: _Optional[_Union[LabelEvidence, _Mapping]] = ..., schema: _Optional[int] = ...) -> None: ...

class PairEvidence(_message.Message):
    __slots__ = ("first", "second", "outcome", "tie_offered", "margin")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TIE_OFFERED_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    first: str
    second: str
    outcome: PairOutcome
    tie_offered: bool
    margin: float
    def __init__(self, first: _Optional[str] = ..., second: _Optional[str] = ..., outcome: _Optional[_Union[PairOutcome, str]] = ..., tie_offered: _Optional[bool] = ..., margin: _Optional[float] = ...) -> None: ...

class RankingEvidence(_message.Message):
    __slots__ = ("order", "observed")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    order: _containers.RepeatedScalarFieldContainer[str]
    observed: int
    def __init__(self, order: _Optional[_Iterable[str]] = ..., observed: _Optional[int] = ...) -> None: ...

class BinaryEvidence(_message.Message):
    __slots__ = ("candidate", "positive", "source")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    positive: bool
    source: str
    def __init__(self, candidate: _Optional[str] = ..., positive: _Optional[bool] = ..., source: _Optional[str] = ...) -> None: ...

class ScalarEvidence(_message.Message):
    __slots__ = ("candidate", "value", "source")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    value: float
    source: str
    def __init__(self, candidate: _Optional[str] = ..., value: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class DemoEvidence(_message.Message):
    __slots__ = ("candidate", "text", "margin")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    text: str
    margin: float
    def __init__(self, candidate: _Optional[str] = ..., text: _Optional[str] = ..., margin: _Optional[float] = ...) -> None: ...

class LabelEvidence(_message.Message):
    __slots__ = ("candidate", "value")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    value: str
    def __init__(self, candidate: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
