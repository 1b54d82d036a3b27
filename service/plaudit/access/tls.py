"""Encryption of the ports: certificates from files, read anew when the files change.

What enters: paths of PEM files. What leaves: credentials of a gRPC server and an SSL context of an HTTP server, both of
which look at the files at every handshake. Files that do not belong together (half of a renewal) are not taken: the
former ones serve on, and the log says so.
"""

from __future__ import annotations

import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

from plaudit.errors import Misconfigured
from plaudit.settings import TlsSettings

_log = structlog.get_logger(__name__)

_State = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Read:
    """What the files held, whether for gRPC or for HTTP."""

    state: _State
    configuration: Any
    context: ssl.SSLContext


class Certificates:
    """The certificates of one server; may be asked from any thread. Raises Misconfigured for files of no use."""

    def __init__(self, settings: TlsSettings) -> None:
        self._paths = [Path(each) for each in (settings.certificate, settings.key, settings.client_ca) if each]
        self._mutual = bool(settings.client_ca)
        self._lock = threading.Lock()
        self._read = self._from_files()

    def for_grpc(self) -> grpc.ServerCredentials:
        """Credentials of a gRPC port."""
        given = [self._read]

        def newer() -> Any:
            now = self._newest()
            if now is given[0]:
                return None
            given[0] = now
            return now.configuration

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            given[0].configuration, newer, require_client_authentication=self._mutual
        )
        return credentials

    def for_http(self) -> ssl.SSLContext:
        """Context of an HTTP port, for servers on asyncio."""
        return _Following(self)

    def context(self) -> ssl.SSLContext:
        """Context of what the files hold now."""
        return self._newest().context

    def _newest(self) -> _Read:
        with self._lock:
            try:
                if self._state() != self._read.state:
                    self._read = self._from_files()
                    _log.info("tls.reloaded", certificate=str(self._paths[0]))
            except Misconfigured as error:
                _log.error("tls.not_reloaded", why=error.message)
            return self._read

    def _state(self) -> _State:
        try:
            found = [os.stat(path) for path in self._paths]
        except OSError as error:
            raise self._unusable(str(error)) from error
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)

    def _from_files(self) -> _Read:
        state = self._state()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            certificate, key, *authority = [path.read_bytes() for path in self._paths]
            context.load_cert_chain(self._paths[0], self._paths[1])
            if authority:
                context.load_verify_locations(self._paths[2])
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise self._unusable(str(error)) from error
        if self._state() != state:
            raise self._unusable("they changed while they were read")
        configuration = grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=authority[0] if authority else None
        )
        return _Read(state, configuration, context)

    def _unusable(self, why: str) -> Misconfigured:
        return Misconfigured(
            f"the files of access.tls ({', '.join(str(path) for path in self._paths)}) cannot be used: {why}; give a "
            "certificate chain and its key in PEM",
            setting="access.tls",
        )


class _Following(ssl.SSLContext):
    """A context that hands each connection to the newest one."""

    def __new__(cls, certificates: Certificates) -> _Following:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates

    def wrap_bio(self, *args: Any, **more: Any) -> ssl.SSLObject:
        """What asyncio asks for at the start of each connection."""
        return self._certificates.context().wrap_bio(*args, **more)
