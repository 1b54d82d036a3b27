"""PrivacyService: this version offers none of its calls, and says so."""

from __future__ import annotations

from typing import Any, NoReturn

from plaudit.access.rights import check_tenant
from plaudit.errors import NotOffered
from plaudit.serving.validate import tenant_name
from plaudit.v1 import privacy_pb2, privacy_pb2_grpc


class PrivacyServicer(privacy_pb2_grpc.PrivacyServiceServicer):  # type: ignore[misc]
    """Erasure and its receipt."""

    def ErasePerson(self, request: privacy_pb2.ErasePersonRequest, context: Any) -> NoReturn:
        """See privacy.proto."""
        check_tenant(tenant_name(request.tenant))
        raise NotOffered("this version cannot erase a person; topics with a retention limit drop what is older")

    def GetErasureReceipt(self, request: privacy_pb2.GetErasureReceiptRequest, context: Any) -> NoReturn:
        """See privacy.proto."""
        raise NotOffered("this version cannot erase a person, so there is no receipt")
