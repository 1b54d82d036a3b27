"""DomainService: what the service can be asked, and what feedback its domains take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plaudit.access.rights import caller
from plaudit.domain import Declaration, DomainPlugin
from plaudit.eventlog.bodies import ACTIONS
from plaudit.serving.paging import behind, page, page_size
from plaudit.types import FeedbackKind, Scale
from plaudit.v1 import domains_pb2, domains_pb2_grpc


class DomainServicer(domains_pb2_grpc.DomainServiceServicer):  # type: ignore[misc]
    """What domains declare."""

    def __init__(self, plugins: Mapping[str, DomainPlugin]) -> None:
        self._declared = [plugins[name].declaration for name in sorted(plugins)]

    def ListDomains(self, request: domains_pb2.ListDomainsRequest, context: Any) -> domains_pb2.ListDomainsResponse:
        """See domains.proto."""
        after = behind(request)
        left = [each for each in self._declared if each.name > after and caller().may_ask(each.name)]
        shown, token = page(left, page_size(request), lambda each: each.name)
        return domains_pb2.ListDomainsResponse(domains=[_domain(each) for each in shown], next_page_token=token)


def _domain(declared: Declaration) -> domains_pb2.Domain:
    rates = FeedbackKind.RATING in declared.kinds
    return domains_pb2.Domain(
        name=declared.name,
        version=declared.version,
        action=ACTIONS[declared.action],
        kinds=sorted(declared.kinds),
        reasons=sorted(declared.reasons),
        rating_scale=_scale(declared.rating_scale or Scale(low=0.0, high=1.0)) if rates else None,
        signals=[domains_pb2.DeclaredSignal(name=name, scale=_scale(scale)) for name, scale in declared.signals],
        labels=sorted(declared.labels),
        conversations=declared.conversations,
        places=len(declared.place_weights),
        policy_version=declared.policy_version,
    )


def _scale(scale: Scale) -> domains_pb2.Scale:
    return domains_pb2.Scale(low=scale.low, high=scale.high)
