"""Who may call what: the roles, the table of rights, and the caller of the call in hand.

What enters: a caller's roles, tenants and domains. What leaves: nothing, or RoleNeeded or NotYourChannel. The table is
the only place that says which role may make which call; a call that it does not name is refused to everybody.
docs/access.md shows the table as `plaudit keys rights` prints it.
"""

from __future__ import annotations

import contextvars
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from plaudit.errors import NotYourChannel, RoleNeeded
from plaudit.types import Channel

ANY = "*"


class Role(StrEnum):
    """What a key or token is for. One may have several roles."""

    CALLER = "caller"
    """A product's backend: asks, and passes people's feedback on."""
    RATER = "rater"
    """Somebody who gives feedback under handles, and asks nothing."""
    OPERATOR = "operator"
    """Reads releases and moves them, names releases in requests, sees token ids, erases people."""
    LEARNER = "learner"
    """A process that follows releases and reads their manifests."""


_ASK = frozenset({Role.CALLER, Role.OPERATOR})
_RATE = frozenset({Role.CALLER, Role.RATER})
_FOLLOW = frozenset({Role.CALLER, Role.OPERATOR, Role.LEARNER})
_READ = frozenset({Role.OPERATOR, Role.LEARNER})
_OPERATE = frozenset({Role.OPERATOR})
_EVERYBODY = frozenset(Role)

RIGHTS: Mapping[str, frozenset[Role]] = {
    "AssistantService/Generate": _ASK,
    "AssistantService/StreamGenerate": _ASK,
    "AssistantService/Choose": _ASK,
    "FeedbackService/SubmitFeedback": _RATE,
    "FeedbackService/StreamFeedback": _RATE,
    "FeedbackService/RetractFeedback": _RATE,
    "DomainService/ListDomains": _EVERYBODY,
    "ReleaseService/ListChannels": _FOLLOW,
    "ReleaseService/ListReleases": _FOLLOW,
    "ReleaseService/GetRelease": _READ,
    "ReleaseService/WatchReleases": _FOLLOW,
    "ReleaseService/PromoteRelease": _OPERATE,
    "ReleaseService/RollBackRelease": _OPERATE,
    "ReleaseService/PinRelease": _OPERATE,
    "PrivacyService/ErasePerson": _OPERATE,
    "PrivacyService/GetErasureReceipt": _OPERATE,
}
# Beside the calls: fields of requests and replies that are an operator's alone.
NAMES_RELEASES = "naming a release in a request"
SEES_TOKENS = "token ids in replies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call. `name` stands in records; `tenants` and `domains` hold names or ANY.

    `person`: the rater that feedback is given as, if the credentials are one person's own; else empty.
    """

    name: str
    roles: frozenset[Role]
    tenants: frozenset[str]
    domains: frozenset[str]
    person: str = ""

    @property
    def own_tenant(self) -> str:
        """The tenant that is meant if a request names none, if there is just one; else empty."""
        (only,) = self.tenants if len(self.tenants) == 1 else ("",)
        return "" if only == ANY else only

    def may_ask(self, domain: str) -> bool:
        """Whether the domain is among those of this caller."""
        return not self.domains.isdisjoint((ANY, domain))

    def may_use(self, channel: Channel) -> bool:
        """Whether the channel's tenant and domain are among those of this caller."""
        return not self.tenants.isdisjoint((ANY, channel.tenant)) and self.may_ask(channel.domain)


# Whoever reaches a port that asks for no credentials.
ANYBODY = Caller(name="", roles=frozenset(Role), tenants=frozenset({ANY}), domains=frozenset({ANY}))

_current: contextvars.ContextVar[Caller] = contextvars.ContextVar("plaudit_caller", default=ANYBODY)


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Makes `caller` the one of the call in hand for the length of a block."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)


def caller() -> Caller:
    """Who makes the call in hand; ANYBODY outside of one."""
    return _current.get()


def check_method(who: Caller, method: str) -> None:
    """Raises RoleNeeded unless the table allows `method` ("FeedbackService/SubmitFeedback") to one of the roles."""
    _check_roles(who, RIGHTS.get(method, frozenset()), f"the call {method}")


def check_operator(what: str) -> None:
    """Raises RoleNeeded unless the call in hand is an operator's."""
    _check_roles(caller(), _OPERATE, what)


def check_channel(channel: Channel) -> None:
    """Raises NotYourChannel unless the caller of the call in hand may use the channel."""
    if not caller().may_use(channel):
        raise NotYourChannel(
            f"the credentials of this call are not for the channel {channel}; ask with those of its tenant",
            channel=channel,
        )


def check_tenant(tenant: str) -> None:
    """Raises NotYourChannel unless the caller of the call in hand may use every domain of the tenant."""
    check_channel(Channel(ANY, tenant))


def rights_table() -> str:
    """The table of rights in Markdown: one row per call, one column per role."""
    rows = [*RIGHTS.items(), (NAMES_RELEASES, _OPERATE), (SEES_TOKENS, _OPERATE)]
    lines = [
        f"| Call | {' | '.join(Role)} |",
        f"|---|{'---|' * len(Role)}",
        *(f"| {_code(name)} | {' | '.join('yes' if role in may else '-' for role in Role)} |" for name, may in rows),
    ]
    return "\n".join(lines)


def _code(name: str) -> str:
    return f"`{name}`" if "/" in name else name


def _check_roles(who: Caller, needed: Collection[Role], what: str) -> None:
    if who.roles.isdisjoint(needed):
        wanted, has = ", ".join(sorted(needed)), ", ".join(sorted(who.roles))
        raise RoleNeeded(
            f"{what} is for the role {wanted or '(nobody)'}; these credentials have {has or 'none'}",
            needed=wanted,
            roles=has,
        )
