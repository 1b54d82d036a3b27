"""From an answer to a durable interaction and its handle, and back again if the request is sent a second time.

What enters: what was answered. What leaves: an Interaction in the log, and with it a signed handle. Never answers
before the record is durable. A request that is sent again under its interaction id gets the answer that was recorded:
from this replica's memory, else from a log that can look a record up (the embedded one, so across replicas and
restarts). If neither knows it, the request is answered anew, the join keeps the first record, and the mark in each
handle sees to it that feedback never lands on another text (ADR 15).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from plaudit import __version__
from plaudit.errors import IdConflict, LogUnavailable
from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.codec import decode, encode_interaction, request_digest
from plaudit.metrics import Metrics
from plaudit.serving.handle import HandleClaims, HandleSigner, answer_mark, pseudonym
from plaudit.serving.validate import Envelope
from plaudit.telemetry import traceparent
from plaudit.types import Action, Consent, Interaction, without_text

PRODUCER = f"plaudit-serve/{__version__}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A durable interaction and the handle that goes with it."""

    interaction: Interaction
    handle: str
    expires_at: dt.datetime


class Memory:
    """The newest records of this replica by interaction id, up to `most_bytes` of them."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._records: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, interaction_id: str) -> bytes | None:
        """The record of an interaction, if it is remembered."""
        with self._lock:
            return self._records.get(interaction_id)

    def put(self, interaction_id: str, record: bytes) -> None:
        """Remembers a record; the oldest are forgotten."""
        with self._lock:
            self._bytes += len(record) - len(self._records.pop(interaction_id, b""))
            self._records[interaction_id] = record
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._records.popitem(last=False)[1])

    def forget(self, gone: Callable[[bytes], bool]) -> int:
        """Forgets records, and says how many."""
        with self._lock:
            known = list(self._records.items())
        ended = [interaction_id for interaction_id, record in known if gone(record)]
        with self._lock:
            for interaction_id in ended:
                self._bytes -= len(self._records.pop(interaction_id, b""))
        return len(ended)


class Recorder:
    """Records answers and finds them again; its methods may be called from any thread."""

    def __init__(
        self, log: EventLog, signer: HandleSigner, pseudonym_key: bytes, metrics: Metrics, *, remembered_bytes: int
    ) -> None:
        self._log = log
        self._signer = signer
        self._pseudonym_key = pseudonym_key
        self._metrics = metrics
        self._memory = Memory(remembered_bytes)

    def pseudonym(self, tenant: str, person: str) -> str:
        """A person's pseudonym in the log; empty for nobody."""
        return pseudonym(self._pseudonym_key, tenant, person)

    def find(
        self, envelope: Envelope, action: Action, consent: Consent, *, n: int = 0, option_ids: Collection[str] = ()
    ) -> Recorded | None:
        """What was recorded under the request's id; raises IdConflict if that answered another request.

        `n`: completions wanted, 0 for as many as there are. None too if the answer was not kept.
        """
        record = self._memory.get(envelope.interaction_id)
        if record is None:
            try:
                records = self._log.find(Topic.INTERACTIONS, envelope.interaction_id, 1)
            except LogUnavailable:
                return None  # the append will say so, if it is still away by then
            record = records[0] if records else None
        if record is None:
            return None
        found = decode(record)
        if isinstance(found, Interaction) and not (found.consent.store or consent.store):
            return None  # it is answered anew: nothing of the first answer is known
        if not isinstance(found, Interaction) or not self._answers(found, envelope, action, consent, n, option_ids):
            raise IdConflict(
                f"the interaction id {envelope.interaction_id} was used for another request; "
                "make a new id for each request, and repeat one only to send the very same request again"
            )
        return self.signed(found)

    def record(self, interaction: Interaction) -> Recorded:
        """Makes the interaction durable, unless another attempt under its id already is: then gives that one back."""
        earlier = self._memory.get(interaction.interaction_id)
        if earlier is not None:
            found = decode(earlier)
            if isinstance(found, Interaction) and request_digest(found) == request_digest(interaction):
                return self.signed(found)
        started = time.perf_counter()
        kept = interaction if interaction.consent.store else without_text(interaction)
        record = encode_interaction(kept, producer=PRODUCER, traceparent=traceparent())
        self._log.append(Topic.INTERACTIONS, interaction.interaction_id, record)
        if interaction.consent.store:
            self._memory.put(interaction.interaction_id, record)
        self._metrics.append_seconds.labels(Topic.INTERACTIONS.value).observe(time.perf_counter() - started)
        for candidate in interaction.candidates:
            valid = "true" if candidate.valid else "false"
            self._metrics.completions.labels(str(interaction.channel), interaction.purpose.value, valid).inc()
        if not interaction.consent.train:
            withheld = "training" if interaction.consent.store else "storage"
            self._metrics.consent_withheld.labels(str(interaction.channel), withheld).inc()
        return self.signed(interaction)

    def forget(self, tenant: str, person: str) -> int:
        """Forgets the answers that name a person's pseudonym, and says how many."""

        def names(record: bytes) -> bool:
            said = decode(record)
            assert isinstance(said, Interaction), "nothing else is remembered"
            return said.channel.tenant == tenant and person in (said.end_user, said.rater)

        return self._memory.forget(names)

    def signed(self, interaction: Interaction) -> Recorded:
        """The interaction with its handle, which expires by the time of the answer, however often it is asked for."""
        mark = interaction.answers[0] if interaction.answers else answer_mark(interaction.candidates)
        ids = [candidate.candidate_id for candidate in interaction.candidates]
        handle, expires_at = self.handle(interaction, ids, mark, interaction.completed_at)
        return Recorded(interaction, handle, expires_at)

    def handle(
        self, about: Interaction, candidate_ids: Collection[str], mark: str, now: dt.datetime
    ) -> tuple[str, dt.datetime]:
        """A signed handle of an interaction (of which only ids, channel and rater are read), and when it expires."""
        expires_at = self._signer.expiry(now)
        claims = HandleClaims(
            tenant=about.channel.tenant,
            domain=about.channel.domain,
            interaction_id=about.interaction_id,
            candidate_ids=tuple(candidate_ids),
            answer=mark,
            rater=about.rater,
            expires_at=expires_at,
            stored=about.consent.store,
        )
        return self._signer.sign(claims), expires_at

    def _answers(
        self,
        found: Interaction,
        envelope: Envelope,
        action: Action,
        consent: Consent,
        n: int,
        option_ids: Collection[str],
    ) -> bool:
        """Whether a recorded interaction answers this request."""
        offered = {candidate.option_id for candidate in found.candidates if candidate.option_id}
        if n not in (0, len(found.candidates)) or offered != set(option_ids):
            return False
        tenant = envelope.channel.tenant
        asked = dataclasses.replace(
            found,
            channel=envelope.channel,
            purpose=envelope.purpose,
            action=action,
            messages=envelope.request.messages,
            passages=envelope.request.passages,
            session_id=envelope.session_id,
            end_user=self.pseudonym(tenant, envelope.end_user),
            rater=self.pseudonym(tenant, envelope.rater),
            tags=envelope.tags,
            consent=consent,
        )
        return request_digest(asked) == request_digest(found)
