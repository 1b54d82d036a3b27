"""What a client brings: a key or a token, and certificates.

What enters: a client's options, else environment variables: PLAUDIT_KEY (a key or a token), PLAUDIT_ROOT_CERTIFICATES,
PLAUDIT_CLIENT_CERTIFICATE and PLAUDIT_CLIENT_KEY (files). What leaves: credentials of a channel and metadata of its
calls. A key never travels unencrypted beyond this machine unless the client is told `plaintext=True`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import grpc

from plaudit.addresses import is_loopback
from plaudit.errors import Misconfigured

KEY, ROOTS = "PLAUDIT_KEY", "PLAUDIT_ROOT_CERTIFICATES"
CLIENT_CERTIFICATE, CLIENT_KEY = "PLAUDIT_CLIENT_CERTIFICATE", "PLAUDIT_CLIENT_KEY"


class AccessOptions(TypedDict, total=False):
    """Options of a client that say who it is and whom it trusts."""

    key: str
    """An API key of the service (`plaudit keys create`)."""
    token: str
    """A token of the service's identity provider, instead of a key."""
    tls: bool
    """Encrypt and trust the machine's own authorities; implied by the options below."""
    root_certificates: Path | str | bytes
    """The authority that signed the service's certificate: a PEM file, or its content as bytes."""
    client_certificate: tuple[Path | str, Path | str]
    """For mutual TLS: PEM files of the client's certificate chain and of its key."""
    plaintext: bool
    """Send the key unencrypted to another machine: something in between, such as a mesh, encrypts."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """`channel` is None for a channel that is not encrypted; `metadata` goes with every call."""

    channel: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]


def credentials_of(target: str, options: AccessOptions) -> Credentials:
    """The credentials of these options, else of the environment; raises Misconfigured."""
    bearer = options.get("key") or options.get("token") or os.environ.get(KEY, "")
    roots = options.get("root_certificates") or os.environ.get(ROOTS, "")
    own = options.get("client_certificate") or _own_from_environment()
    encrypted = bool(options.get("tls") or roots or own)
    if bearer and not encrypted and not is_loopback(target) and not options.get("plaintext"):
        raise Misconfigured(
            f"the key would travel to {target} unencrypted; give root_certificates (or {ROOTS}), tls=True for an "
            "authority that this machine knows, or plaintext=True if something in between encrypts",
            setting="root_certificates",
        )
    if not bearer.isascii() or any(character.isspace() for character in bearer):
        raise Misconfigured("a key or token is ASCII without spaces; check that it was copied whole", setting="key")
    channel = None
    if encrypted:
        certificate, key = (_pem(own[0]), _pem(own[1])) if own else (None, None)
        channel = grpc.ssl_channel_credentials(_pem(roots) if roots else None, key, certificate)
    return Credentials(channel, (("authorization", f"Bearer {bearer}"),) if bearer else ())


def _own_from_environment() -> tuple[str, str] | None:
    certificate, key = os.environ.get(CLIENT_CERTIFICATE, ""), os.environ.get(CLIENT_KEY, "")
    if bool(certificate) != bool(key):
        raise Misconfigured(f"{CLIENT_CERTIFICATE} and {CLIENT_KEY} belong together; set both", setting="key")
    return (certificate, key) if certificate else None


def _pem(source: Path | str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise Misconfigured(f"{source} cannot be read ({error.strerror})", setting="root_certificates") from error
