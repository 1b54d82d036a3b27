"""Why no client can connect to the brokers: of a wrong password kafka-python says "unable to bootstrap", no more.

Enters: Kafka's settings, once a client has failed. Leaves: the step at which a broker turned this client away (address,
TLS, mechanism, password), found by a connection of its own that goes through them one by one.
"""

from __future__ import annotations

import io
import socket
import ssl
import struct
from typing import Final

from kafka.net.sasl.scram import ScramClient

from plaudit.errors import LogUnavailable, Misconfigured, PlauditError
from plaudit.settings import KafkaSettings

_SECONDS = 5.0
_API_VERSIONS: Final = 18
_SASL_HANDSHAKE: Final = 17
_SASL_AUTHENTICATE: Final = 36
_MOST_BYTES = 1 << 20  # of an answer: whatever says more is no broker


def diagnose(settings: KafkaSettings) -> PlauditError | None:
    """What the first broker that answers does not accept; None if it accepts everything asked here.

    A broker that stays silent, or hangs up with TLS and without, counts as away (a stopped process, or a proxy before a
    broker that is down). That passes by itself; a wrong setting does not.
    """
    away: list[str] = []
    for server in filter(None, map(str.strip, settings.bootstrap.split(","))):
        host, _, port = server.rpartition(":")
        place = (host.strip("[]"), int(port))
        try:
            raw = socket.create_connection(place, timeout=_SECONDS)
        except OSError as error:
            away.append(f"{server}: {error.strerror or error}")
            continue
        try:
            return _turned_away(settings, place, server, raw)
        except TimeoutError:
            away.append(f"{server}: takes a connection and says nothing")
        except EOFError:
            away.append(f"{server}: takes a connection and hangs up")
    return LogUnavailable(
        f"no broker of log.kafka.bootstrap can be reached ({'; '.join(away)}); check the addresses, and that the "
        "brokers run"
    )


def _turned_away(
    settings: KafkaSettings, place: tuple[str, int], server: str, raw: socket.socket
) -> PlauditError | None:
    """Raises TimeoutError or EOFError if it cannot be told from a broker that is away."""
    if settings.security in ("plaintext", "sasl_plaintext"):
        with raw:
            return _protocol(settings, place, server, raw)
    try:
        with raw, tls_context(settings).wrap_socket(raw, server_hostname=place[0]) as connection:
            return _protocol(settings, place, server, connection)
    except ssl.SSLCertVerificationError as error:
        return Misconfigured(
            f"the certificate of {server} is not to be trusted ({error.verify_message}); name the authority that "
            "signed it, or check the address",
            setting="log.kafka.ca_file",
        )
    except TimeoutError:
        raise
    except OSError as error:
        if isinstance(error, ssl.SSLEOFError | ConnectionError) and not _answers_plaintext(place):
            raise EOFError from error
        return Misconfigured(
            f"{server} does not begin TLS ({type(error).__name__}); check log.kafka.security and the port",
            setting="log.kafka.security",
        )


def _protocol(
    settings: KafkaSettings, place: tuple[str, int], server: str, connection: socket.socket
) -> PlauditError | None:
    """What the broker says to the first requests over a connection that stands."""
    try:
        if settings.security.startswith("sasl"):
            return _sasl(settings, server, connection)
        _ask(connection, _API_VERSIONS, 0, b"")
    except TimeoutError:
        raise
    except (OSError, EOFError, ValueError) as error:
        if settings.security in ("plaintext", "sasl_plaintext"):
            if not isinstance(error, ValueError) and not _begins_tls(place):
                raise EOFError from error
            said = f"{server} closes a plaintext connection; it probably wants TLS or a password"
        elif settings.client_cert_file:
            said = f"{server} does not take the certificate of log.kafka.client_cert_file"
        else:
            said = f"{server} wants a client's certificate; set log.kafka.client_cert_file and client_key_file"
        return Misconfigured(f"{said}; check log.kafka.security", setting="log.kafka.security")
    return None


def _begins_tls(place: tuple[str, int]) -> bool:
    """Whether who listens there speaks TLS, whatever its certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(place, timeout=_SECONDS) as raw, context.wrap_socket(raw):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _answers_plaintext(place: tuple[str, int]) -> bool:
    """Whether who listens there answers as a broker without TLS does."""
    try:
        with socket.create_connection(place, timeout=_SECONDS) as raw:
            _ask(raw, _API_VERSIONS, 0, b"")
    except (OSError, EOFError, ValueError):
        return False
    return True


def _sasl(settings: KafkaSettings, server: str, connection: socket.socket) -> PlauditError | None:
    """The exchange of RFC 5802 (SCRAM) or RFC 4616 (PLAIN), as Kafka frames it."""
    answer = _ask(connection, _SASL_HANDSHAKE, 1, _text(settings.mechanism))
    (code,) = struct.unpack(">h", answer.read(2))
    if code:
        (count,) = struct.unpack(">i", answer.read(4))
        offered = ", ".join(answer.read(struct.unpack(">h", answer.read(2))[0]).decode() for _ in range(count))
        return Misconfigured(
            f"{server} offers no {settings.mechanism}; it offers {offered}", setting="log.kafka.mechanism"
        )
    password = settings.password.get_secret_value()
    refused = Misconfigured(
        f"{server} refuses the user {settings.username!r}: name or password is wrong (log.kafka.username, "
        "log.kafka.password)",
        setting="log.kafka.password",
    )
    try:
        if settings.mechanism == "PLAIN":
            token = f"\0{settings.username}\0{password}".encode()
            return refused if _authenticate(connection, token) is None else None
        client = ScramClient(settings.username, password, settings.mechanism)
        first = _authenticate(connection, client.first_message())
        if first is None:
            return refused
        client.process_server_first_message(first)
        return refused if _authenticate(connection, client.final_message()) is None else None
    except TimeoutError:
        raise
    except (OSError, EOFError):
        return refused  # a broker may end the connection instead of saying so


def _authenticate(connection: socket.socket, token: bytes) -> bytes | None:
    """The broker's part of the exchange; None if it refuses."""
    answer = _ask(connection, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
    (code,) = struct.unpack(">h", answer.read(2))
    if code:
        return None
    (said,) = struct.unpack(">h", answer.read(2))
    answer.read(max(said, 0))
    (size,) = struct.unpack(">i", answer.read(4))
    return answer.read(size)


def _ask(connection: socket.socket, api: int, version: int, body: bytes) -> io.BytesIO:
    """One request of the Kafka protocol and what follows the header of its answer. Raises OSError or EOFError."""
    request = struct.pack(">hhi", api, version, 1) + _text("plaudit-diagnosis") + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    (size,) = struct.unpack(">i", _read(connection, 4))
    if not 4 <= size <= _MOST_BYTES:
        raise ValueError(f"an answer of {size} bytes is none of Kafka's")
    answer = io.BytesIO(_read(connection, size))
    answer.read(4)  # the number of the request
    return answer


def _read(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise EOFError
        found += more
    return found


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value.encode())) + value.encode()


def tls_context(settings: KafkaSettings) -> ssl.SSLContext:
    """TLS as the settings say. Raises Misconfigured for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        if settings.client_cert_file:
            password = settings.client_key_password.get_secret_value()
            # Never asks at a terminal: without a password, an encrypted key is an error.
            context.load_cert_chain(settings.client_cert_file, settings.client_key_file, password=lambda: password)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(
            f"log.kafka.{name}={getattr(settings, name)}"
            for name in ("ca_file", "client_cert_file", "client_key_file")
            if getattr(settings, name)
        )
        raise Misconfigured(
            f"the files of TLS cannot be used ({error}): {named or 'the authorities of this machine'}",
            setting="log.kafka.ca_file",
        ) from error
    return context
