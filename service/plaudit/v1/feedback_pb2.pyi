import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from plaudit.v1 import errors_pb2 as _errors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Thumbs(_message.Message):
    __slots__ = ("candidate_id", "up")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    up: bool
    def __init__(self, candidate_id: _Optional[str] = ..., up: _Optional[bool] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("chosen_id", "other_id", "tie", "tie_offered")
    CHOSEN_ID_FIELD_NUMBER: _ClassVar[int]
    OTHER_ID_FIELD_NUMBER: _ClassVar[int]
    TIE_FIELD_NUMBER: _ClassVar[int]
    TIE_OFFERED_FIELD_NUMBER: _ClassVar[int]
    chosen_id: str
    other_id: str
    tie: bool
    tie_offered: bool
    def __init__(self, chosen_id: _Optional[str] = ..., other_id: _Optional[str] = ..., tie: _Optional[bool] = ..., tie_offered: _Optional[bool] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("candidate_ids",)
    CANDIDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    candidate_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, candidate_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Correction(_message.Message):
    __slots__ = ("candidate_id", "text")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    text: str
    def __init__(self, candidate_id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Rating(_message.Message):
    __slots__ = ("candidate_id", "value")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    value: float
    def __init__(self, candidate_id: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("candidate_id", "value")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    value: str
    def __init__(self, candidate_id: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("candidate_id", "name", "value")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    name: str
    value: float
    def __init__(self, candidate_id: _Optional[str] = ..., name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Comment(_message.Message):
    __slots__ = ("candidate_id", "text")
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    candidate_id: str
    text: str
    def __init__(self, candidate_id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Feedback(_message.Message):
    __slots__ = ("feedback_id", "handle", "rater", "session_id", "thumbs", "choice", "ranking", "correction", "rating", "label", "signal", "comment", "reasons", "whole_conversation", "tags")
    class TagsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    RATER_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    THUMBS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    COMMENT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    handle: str
    rater: str
    session_id: str
    thumbs: Thumbs
    choice: Choice
    ranking: Ranking
    correction: Correction
    rating: Rating
    label: Label
    signal: Signal
    comment: Comment
    reasons: _containers.RepeatedScalarFieldContainer[str]
    whole_conversation: bool
    tags: _containers.ScalarMap[str, str]
    def __init__(self, feedback_id: _Optional[str] = ..., handle: _Optional[str] = ..., rater: _Optional[str] = ..., session_id: _Optional[str] = ..., thumbs: _Optional[_Union[Thumbs, _Mapping]] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ..., correction: _Optional[_Union[Correction, _Mapping]] = ..., rating: _Optional[_Union[Rating, _Mapping]] = ..., label: _Optional[_Union[Label, _Mapping]] = ..., signal: _Optional[_Union[Signal, _Mapping]] = ..., comment: _Optional[_Union[Comment, _Mapping]] = ..., reasons: _Optional[_Iterable[str]] = ..., whole_conversation: _Optional[bool] = ..., tags: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SubmitFeedbackRequest(_message.Message):
    __slots__ = ("feedback",)
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    feedback: Feedback
    def __init__(self, feedback: _Optional[_Union[Feedback, _Mapping]] = ...) -> None: ...

class SubmitFeedbackResponse(_message.Message):
    __slots__ = ("feedback_id", "interaction_id", "accepted_at")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    INTERACTION_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    interaction_id: str
    accepted_at: _timestamp_pb2.Timestamp
    def __init__(self, feedback_id: _Optional[str] = ..., interaction_id: _Optional[str] = ..., accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class StreamFeedbackRequest(_message.Message):
    __slots__ = ("feedback", "acts")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    ACTS_FIELD_NUMBER: _ClassVar[int]
    feedback: Feedback
    acts: _containers.RepeatedCompositeFieldContainer[Feedback]
    def __init__(self, feedback: _Optional[_Union[Feedback, _Mapping]] = ..., acts: _Optional[_Iterable[_Union[Feedback, _Mapping]]] = ...) -> None: ...

class StreamFeedbackResponse(_message.Message):
    __slots__ = ("index", "feedback_id", "accepted", "reason", "message", "answers")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    index: int
    feedback_id: str
    accepted: bool
    reason: _errors_pb2.ErrorReason
    message: str
    answers: _containers.RepeatedCompositeFieldContainer[StreamFeedbackResponse]
    def __init__(self, index: _Optional[int] = ..., feedback_id: _Optional[str] = ..., accepted: _Optional[bool] = ..., reason: _Optional[_Union[_errors_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ..., answers: _Optional[_Iterable[_Union[StreamFeedbackResponse, _Mapping]]] = ...) -> None: ...

class RetractFeedbackRequest(_message.Message):
    __slots__ = ("handle", "feedback_id", "rater", "session_id")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    RATER_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    handle: str
    feedback_id: str
    rater: str
    session_id: str
    def __init__(self, handle: _Optional[str] = ..., feedback_id: _Optional[str] = ..., rater: _Optional[str] = ..., session_id: _Optional[str] = ...) -> None: ...

class RetractFeedbackResponse(_message.Message):
    __slots__ = ("accepted_at",)
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    accepted_at: _timestamp_pb2.Timestamp
    def __init__(self, accepted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
