"""PrivacyService: erasures and their receipts, for operators.

Enters: a person as callers name them. Leaves: a durable request, which the join brings to its end, and signed receipts.
The name itself is kept nowhere: it becomes the pseudonym that records have.
"""

from __future__ import annotations

from typing import Any

from plaudit.access.rights import caller, check_tenant
from plaudit.eventlog.bodies import timestamp
from plaudit.privacy import erasure, receipts
from plaudit.serving.handle import pseudonym
from plaudit.serving.validate import MAX_PERSON_BYTES, identifier, short_text, tenant_name
from plaudit.settings import Settings
from plaudit.store.database import Database
from plaudit.v1 import privacy_pb2, privacy_pb2_grpc

_STATES = {
    "requested": privacy_pb2.ERASURE_STATE_REQUESTED,
    "erased": privacy_pb2.ERASURE_STATE_ERASED,
    "done": privacy_pb2.ERASURE_STATE_DONE,
}


class PrivacyServicer(privacy_pb2_grpc.PrivacyServiceServicer):  # type: ignore[misc]
    """Erasure and its receipt."""

    def __init__(self, settings: Settings, database: Database, pseudonym_key: bytes) -> None:
        self._settings = settings
        self._database = database
        self._pseudonym_key = pseudonym_key

    def ErasePerson(self, request: privacy_pb2.ErasePersonRequest, context: Any) -> privacy_pb2.ErasePersonResponse:
        """See privacy.proto."""
        tenant = tenant_name(request.tenant)
        check_tenant(tenant)
        person = short_text("person", request.person, MAX_PERSON_BYTES, required=True)
        erasure_id = identifier("erasure_id", request.erasure_id)
        who = pseudonym(self._pseudonym_key, tenant, person)
        found = erasure.request(self._database, erasure_id, tenant, who, caller().name or "anybody")
        return privacy_pb2.ErasePersonResponse(erasure_id=found.erasure_id, requested_at=timestamp(found.requested_at))

    def GetErasureReceipt(
        self, request: privacy_pb2.GetErasureReceiptRequest, context: Any
    ) -> privacy_pb2.GetErasureReceiptResponse:
        """See privacy.proto."""
        found = erasure.read(self._database, identifier("erasure_id", request.erasure_id))
        check_tenant(found.tenant)
        signed = receipts.receipt(self._settings, self._database, found)
        return privacy_pb2.GetErasureReceiptResponse(
            erasure_id=found.erasure_id,
            erased_at=None if found.erased_at is None else timestamp(found.erased_at),
            models_retired_at=None if found.models_retired_at is None else timestamp(found.models_retired_at),
            state=_STATES[receipts.state_of(found)],
            receipt_json=signed.text,
            signature=signed.signature,
            public_key=signed.public_key,
        )
