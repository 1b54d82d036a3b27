"""At the door of every call: who calls, and whether the call is for one of their roles.

What enters: a call's metadata. What leaves: a Caller, or NoCredentials, BadCredentials, RoleNeeded, RateLimited. Also
decides, before a server listens, whether it may: beyond loopback it needs encryption and credentials.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from plaudit.access.keys import PREFIX, ApiKeys, KeyRing
from plaudit.access.limits import Limits
from plaudit.access.rights import ANYBODY, Caller, check_method
from plaudit.access.tokens import Tokens
from plaudit.addresses import address, is_loopback
from plaudit.errors import BadCredentials, Misconfigured, NoCredentials
from plaudit.settings import Settings
from plaudit.store.database import Database

AUTHORIZATION = "authorization"
_SCHEME = "bearer "

_log = structlog.get_logger(__name__)


class Admission:
    """Lets calls in; may be asked from any thread."""

    def __init__(self, limits: Limits, keys: KeyRing | None = None, tokens: Tokens | None = None) -> None:
        """Without `keys` anybody is let in, with every role."""
        self._limits = limits
        self._keys, self._tokens = keys, tokens

    @classmethod
    def of(cls, settings: Settings, database: Database, limits: Limits) -> Admission:
        """As the settings want it."""
        access = settings.access
        if not access.required:
            return cls(limits)
        keys = ApiKeys(database)
        tokens = Tokens(access.tokens) if access.tokens.jwks else None
        if tokens is None and not keys.all():
            _log.warning("access.no_keys", what="nobody can call yet", makes="plaudit keys create NAME --role ...")
        return cls(limits, KeyRing(keys, access.remember_seconds), tokens)

    def identify(self, metadata: Mapping[str, str]) -> Caller:
        """Who calls; raises NoCredentials or BadCredentials."""
        if self._keys is None:
            return ANYBODY
        given = metadata.get(AUTHORIZATION, "")
        if not given:
            raise NoCredentials()
        text = given[len(_SCHEME) :].strip() if given[: len(_SCHEME)].lower() == _SCHEME else ""
        if not text:
            raise BadCredentials("credentials are sent as `authorization: Bearer KEY`", why="malformed")
        if text.startswith(PREFIX):
            return self._keys.caller(text)
        if self._tokens is None:
            raise BadCredentials("this is no API key, and this service takes no tokens", why="malformed")
        return self._tokens.caller(text)

    def admit(self, metadata: Mapping[str, str], method: str) -> Caller:
        """Who calls `method` ("FeedbackService/SubmitFeedback"), if they may."""
        caller = self.identify(metadata)
        check_method(caller, method)
        self._limits.key(caller.name)
        return caller


def exposed_without(settings: Settings) -> list[str]:
    """What a server that is reached beyond this machine lacks; nothing for one on loopback."""
    serve, access = settings.serve, settings.access
    if is_loopback(address(serve.host, serve.port)):
        return []
    needed = (
        ("encryption (access.tls.certificate and access.tls.key)", bool(access.tls.certificate)),
        ("credentials (access.required = true, then `plaudit keys create`)", access.required),
    )
    return [words for words, given in needed if not given]


def check_exposure(settings: Settings) -> None:
    """Raises Misconfigured for a server that would be open beyond this machine, unless it is told to be."""
    missing = exposed_without(settings)
    if missing and not settings.serve.insecure:
        raise Misconfigured(
            f"serve.host is {settings.serve.host}, which others can reach, without {' and '.join(missing)}; set these, "
            "or serve.insecure = true if something in front of the server does both",
            setting="serve.insecure",
        )


def say_exposure(settings: Settings) -> None:
    """Says in the log what is open."""
    if missing := exposed_without(settings):
        _log.warning("access.insecure", host=settings.serve.host, without=missing)
    elif not settings.access.required:
        open_to = "whoever reaches this machine's loopback may call everything, without credentials"
        _log.info("access.open", what=open_to, closes="access.required = true")
