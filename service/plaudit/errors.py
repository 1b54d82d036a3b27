"""Every error that Plaudit raises.

PlauditError
├── RequestRefused                the caller can fix it
│   ├── EmptyPrompt · PromptTooLong · InvalidField · InvalidText · WrongAction
│   ├── UnknownDomain · UnknownTenant · UnknownChannel · UnknownRelease · ReleaseNotServable
│   ├── UnknownFeedback · UnknownErasure
│   ├── HandleForged · HandleExpired · HandleWrongRater · NotStored
│   ├── UndeclaredKind · UndeclaredReason · UnknownCandidate · IncompleteRanking · OutOfScale
│   ├── OptionsTooLong · RequestTooLarge
│   ├── MessageTooLarge · NotOffered · GenerationChanged · WrongState
│   ├── NoCredentials · BadCredentials · RoleNeeded · NotYourChannel · TooManyRaters
├── Busy                          retry later
│   ├── QueueFull · RateLimited · SlotsInUse · NotServing · LogUnavailable · OutboxFull · StoreUnavailable
│   ├── EngineUnavailable
├── CallEnded                     the caller's clock or hand ended the call
│   ├── DeadlinePassed · Cancelled
├── Broken                        an operator must look
│   ├── PluginFailed · BadArtifact · ProofFailed · Misconfigured · InternalError
│   ├── LearnerProcessLost
└── RecordUnusable                the join sends the record to plaudit.rejected
    ├── IdConflict · RetractionByOther · AnotherAnswer · Undecodable · NoInteraction · NotJoined

Each class names its gRPC status code and ErrorReason (protos/plaudit/v1/errors.proto). The message says what
happened, with which value, and what to do; `metadata` holds the keys documented with the reason.
"""

from __future__ import annotations

from typing import ClassVar


class PlauditError(Exception):
    """Something went wrong in Plaudit."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    # After how long another try makes sense, if it does: a queue of completions moves on within about a second.
    retry_seconds: float = 1.0
    field: ClassVar[str] = ""

    def __init__(self, message: str = "", /, **metadata: object) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.metadata = {key: str(value) for key, value in metadata.items()}
        super().__init__(self.message)

    @property
    def wrong_field(self) -> str:
        """Path of the request's field that is wrong; empty if it is none."""
        return self.metadata.get("field") or self.field


class RequestRefused(PlauditError):
    """The request cannot be answered as it is."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_FIELD"


class EmptyPrompt(RequestRefused):
    """The request carries no prompt; send at least one message with text."""

    reason = "EMPTY_PROMPT"
    field = "messages"


class PromptTooLong(RequestRefused):
    """Prompt and max_tokens together exceed the context; shorten the prompt or ask for fewer tokens."""

    reason = "PROMPT_TOO_LONG"
    field = "messages"


class InvalidField(RequestRefused):
    """A field is missing or outside its limits; the message names it and what it must be."""

    reason = "INVALID_FIELD"


class InvalidText(RequestRefused):
    """A text contains a NUL byte or is not valid UTF-8; remove it."""

    reason = "INVALID_TEXT"


class WrongAction(RequestRefused):
    """The domain's action is the other one: call Generate for completions, Choose for choices."""

    reason = "WRONG_ACTION"
    field = "domain"


class UnknownDomain(RequestRefused):
    """No plugin serves this domain; `plaudit plugins list` shows those that are loaded."""

    code = "NOT_FOUND"
    reason = "UNKNOWN_DOMAIN"


class UnknownRelease(RequestRefused):
    """The channel has no such release; `plaudit release list` shows those it has."""

    code = "NOT_FOUND"
    reason = "UNKNOWN_RELEASE"


class UnknownFeedback(RequestRefused):
    """No feedback of this id was acknowledged on the handle's interaction."""

    code = "NOT_FOUND"
    reason = "UNKNOWN_FEEDBACK"


class UnknownErasure(RequestRefused):
    """There is no erasure of this id."""

    code = "NOT_FOUND"
    reason = "UNKNOWN_ERASURE"


class UnknownTenant(RequestRefused):
    """The service does not answer for this tenant; its operator names tenants in serve.tenants."""

    code = "NOT_FOUND"
    reason = "UNKNOWN_TENANT"


class UnknownChannel(RequestRefused):
    """The channel has never served; a channel begins with its first request."""

    code = "NOT_FOUND"
    reason = "UNKNOWN_CHANNEL"


class ReleaseNotServable(RequestRefused):
    """The release exists, but this replica cannot serve it; its log says why."""

    code = "FAILED_PRECONDITION"
    reason = "RELEASE_NOT_SERVABLE"


class HandleForged(RequestRefused):
    """The handle is malformed or signed by an unknown key; use the one that came with the interaction."""

    code = "PERMISSION_DENIED"
    reason = "HANDLE_FORGED"


class HandleExpired(RequestRefused):
    """The handle's time is over; no more feedback on this interaction is taken."""

    code = "PERMISSION_DENIED"
    reason = "HANDLE_EXPIRED"


class HandleWrongRater(RequestRefused):
    """The handle names another rater; leave the call's rater empty or send the same."""

    code = "PERMISSION_DENIED"
    reason = "HANDLE_WRONG_RATER"


class NotStored(RequestRefused):
    """The texts of this interaction are not kept, because nobody agreed to it: there is nothing to give feedback on."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_STORED"


class UndeclaredKind(RequestRefused):
    """The domain does not take this kind of feedback; ListDomains says which it takes."""

    reason = "UNDECLARED_KIND"
    field = "act"


class UndeclaredReason(RequestRefused):
    """The domain does not declare this reason; ListDomains says which it declares."""

    reason = "UNDECLARED_REASON"
    field = "reasons"


class UnknownCandidate(RequestRefused):
    """The feedback names a candidate that the handle does not have, or none of several."""

    reason = "UNKNOWN_CANDIDATE"
    field = "candidate_id"


class IncompleteRanking(RequestRefused):
    """The ranking leaves candidates out or repeats one; it must name each of the interaction's once."""

    reason = "INCOMPLETE_RANKING"
    field = "ranking.candidate_ids"


class OutOfScale(RequestRefused):
    """The value is outside the scale that the domain declares; ListDomains says which that is."""

    reason = "OUT_OF_SCALE"
    field = "value"


class MessageTooLarge(RequestRefused):
    """The message is larger than the service takes (serve.max_message_bytes)."""

    code = "RESOURCE_EXHAUSTED"
    reason = "MESSAGE_TOO_LARGE"


class OptionsTooLong(RequestRefused):
    """The options have more tokens than this model can score; send shorter or fewer ones."""

    reason = "OPTIONS_TOO_LONG"
    field = "options"


class RequestTooLarge(RequestRefused):
    """The engine's whole memory for keys and values would not hold the request; shorten it."""

    code = "RESOURCE_EXHAUSTED"
    reason = "REQUEST_TOO_LARGE"


class NotOffered(RequestRefused):
    """This version does not offer the call."""

    code = "UNIMPLEMENTED"
    reason = "NOT_OFFERED"


class GenerationChanged(RequestRefused):
    """Somebody else changed the channel; read its state and decide again."""

    code = "ABORTED"
    reason = "GENERATION_CHANGED"


class WrongState(RequestRefused):
    """The release's state does not allow this move."""

    code = "FAILED_PRECONDITION"
    reason = "WRONG_STATE"


class NoCredentials(RequestRefused):
    """This service takes calls only with an API key or a token; send one as `authorization: Bearer ...`."""

    code = "UNAUTHENTICATED"
    reason = "NO_CREDENTIALS"


class BadCredentials(RequestRefused):
    """The key or token is malformed, unknown, expired or revoked; ask the service's operator for another."""

    code = "UNAUTHENTICATED"
    reason = "BAD_CREDENTIALS"


class RoleNeeded(RequestRefused):
    """The caller's roles do not allow this; the message names the role that does."""

    code = "PERMISSION_DENIED"
    reason = "ROLE_NEEDED"


class NotYourChannel(RequestRefused):
    """The caller's key or token is not for this tenant or domain."""

    code = "PERMISSION_DENIED"
    reason = "NOT_YOUR_CHANNEL"


class TooManyRaters(RequestRefused):
    """As many raters as are allowed (access.limits.raters_per_handle) have given feedback under this handle."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_RATERS"


class Busy(PlauditError):
    """The service cannot answer now; retry later."""

    code = "UNAVAILABLE"
    reason = "NOT_SERVING"
    retryable = True


class RateLimited(Busy):
    """A key, a tenant or a rater has sent more than its share; wait as long as the answer says."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RATE_LIMITED"


class QueueFull(Busy):
    """The queue of waiting requests is full; retry with backoff."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"


class SlotsInUse(Busy):
    """Every adapter slot is in use; retry with backoff, or raise engine.adapter_slots."""

    reason = "SLOTS_IN_USE"


class NotServing(Busy):
    """This replica is draining or has not finished starting; retry elsewhere."""

    reason = "NOT_SERVING"


class LogUnavailable(Busy):
    """The record could not be made durable, so nothing was acknowledged; retry."""

    reason = "LOG_UNAVAILABLE"


class OutboxFull(Busy):
    """Kafka takes no records, and the outbox or its disk is full; nothing was acknowledged; retry."""

    code = "RESOURCE_EXHAUSTED"
    reason = "OUTBOX_FULL"
    retry_seconds = 5.0  # a broker that comes back takes seconds


class StoreUnavailable(Busy):
    """The database of evidence and releases is away, locked or full; retry."""

    reason = "STORE_UNAVAILABLE"


class EngineUnavailable(Busy):
    """No server that runs the model answers; retry."""

    reason = "ENGINE_UNAVAILABLE"


class CallEnded(PlauditError):
    """The call ended before its answer was ready."""

    code = "CANCELLED"
    reason = "CANCELLED"


class DeadlinePassed(CallEnded):
    """The deadline passed before the answer was ready; allow more time or ask for fewer tokens."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_PASSED"


class Cancelled(CallEnded):
    """The caller went away."""

    code = "CANCELLED"
    reason = "CANCELLED"


class Broken(PlauditError):
    """Something is broken that an operator must fix."""


class PluginFailed(Broken):
    """A plugin raised, took too long or returned what cannot be used; the message names it and the member."""

    reason = "PLUGIN_FAILED"


class BadArtifact(Broken):
    """The registry holds a damaged or foreign artifact; restore it from a backup or train again."""

    code = "FAILED_PRECONDITION"
    reason = "BAD_ARTIFACT"


class ProofFailed(Broken):
    """The staged release does not give the trainer's log-probs, so it is not served."""

    code = "FAILED_PRECONDITION"
    reason = "PROOF_FAILED"


class Misconfigured(Broken):
    """A setting is wrong or a needed file is missing; `plaudit doctor` explains."""

    code = "FAILED_PRECONDITION"
    reason = "MISCONFIGURED"


class LearnerProcessLost(Broken):
    """A process that shares a learner's passes is gone; start all of them again."""

    reason = "LEARNER_PROCESS_LOST"


class InternalError(Broken):
    """A bug in the service; its logs have the details under the request's id."""

    reason = "INTERNAL"


class RecordUnusable(PlauditError):
    """The join cannot use a record."""

    code = "INVALID_ARGUMENT"
    reason = "UNDECODABLE"


class IdConflict(RecordUnusable):
    """Two bodies under one id: the earlier counts."""

    code = "ALREADY_EXISTS"
    reason = "ID_CONFLICT"


class AnotherAnswer(RecordUnusable):
    """A request was answered twice under one id; this feedback is about the answer that does not count."""

    code = "FAILED_PRECONDITION"
    reason = "ANOTHER_ANSWER"


class RetractionByOther(RecordUnusable):
    """Only the rater who gave feedback can withdraw it."""

    code = "PERMISSION_DENIED"
    reason = "RETRACTION_BY_OTHER"


class Undecodable(RecordUnusable):
    """The record cannot be read: it is not an Envelope of this schema."""

    reason = "UNDECODABLE"


class NoInteraction(RecordUnusable):
    """The interaction never arrived within the waiting time."""

    code = "NOT_FOUND"
    reason = "NO_INTERACTION"


class NotJoined(RecordUnusable):
    """The interaction's purpose is EVALUATE: it is logged, and feedback on it is never joined."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_JOINED"
