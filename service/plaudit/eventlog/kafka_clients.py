"""Clients of the brokers: how they connect, and what is said when they cannot.

Enters: Kafka's settings. Leaves: a connected client of kafka-python, or Misconfigured or LogUnavailable with what to
check. Nothing of a client that could not connect stays behind.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kafka
import structlog
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient

from plaudit.errors import LogUnavailable, Misconfigured, PlauditError
from plaudit.eventlog.kafka_diagnosis import diagnose, tls_context
from plaudit.settings import KafkaSettings

# Private members of kafka-python's coordinator, which `keep_finished_joins` needs.
JOINING = ("join_group_async", "rebalance_in_progress", "_join_task", "_generation", "_manager")

_log = structlog.get_logger(__name__)


def connected(client: Callable[..., Any], settings: KafkaSettings, **options: Any) -> Any:
    """A client of this class, connected to the brokers. Raises Misconfigured or LogUnavailable."""
    connections: list[Any] = []

    def connection(**configs: Any) -> Any:
        connections.append(KafkaNetClient(**configs))
        return connections[-1]

    with unreachable(settings):
        try:
            return client(**_connection_options(settings), kafka_client=connection, **options)
        except BaseException:
            # The client's thread would go on knocking for as long as the process lives.
            for each in connections:
                each.close()
            raise


@contextmanager
def unreachable(settings: KafkaSettings) -> Iterator[None]:
    """Turns the client's errors into ours, with what to check."""
    try:
        yield
    except kafka_errors.AuthorizationError as error:
        raise Misconfigured(
            f"the brokers at {settings.bootstrap} deny this client what it needs ({error}); allow it to describe, "
            f"create, read and write topics and groups that begin with {settings.topic_prefix + 'plaudit.'!r}",
            setting="log.kafka.bootstrap",
        ) from error
    except kafka_errors.KafkaError as error:
        raise no_answer(settings, error) from error


def no_answer(settings: KafkaSettings, error: Exception) -> PlauditError:
    """Why no broker answers this client: clients report a wrong address, a wrong password and dead brokers alike."""
    if (found := diagnose(settings)) is not None:
        return found
    return LogUnavailable(
        f"no Kafka broker at {settings.bootstrap} answered within {settings.timeout_seconds:g} s ({error!r}); "
        "check log.kafka.bootstrap, that the brokers are well, and that their advertised addresses can be reached "
        "from here",
    )


def keep_finished_joins(consumer: Any) -> None:
    """Makes a consumer take what its joining the group came to, also if that came between two polls.

    kafka-python 3.0 throws such a result away and joins again, and if the leader of a group joins again, everybody has
    to. So on a machine where joining takes longer than a poll, a group is formed anew for minutes and nobody fetches.
    There is no public way. A client that lacks these members is left as it is, and one warning says so.
    """
    coordinator: Any = getattr(consumer, "_coordinator", None)
    if missing := [name for name in JOINING if not hasattr(coordinator, name)]:
        _say_once_of(tuple(missing))
        return
    joining = coordinator.join_group_async

    async def join(timeout_ms: float | None = None) -> Any:
        task = coordinator._join_task
        joined = task is not None and task.is_done and not task.failed()
        # As it was when the task ended: an error since then may have cost this member its place.
        if joined and coordinator.rebalance_in_progress() and not coordinator._generation.is_lost():

            async def again() -> Any:
                return await task

            coordinator._join_task = coordinator._manager.call_soon(again)  # ends a moment after it is asked for
        return await joining(timeout_ms)

    coordinator.join_group_async = join


@functools.cache
def _say_once_of(missing: tuple[str, ...]) -> None:
    _log.warning("kafka_client_unknown", version=kafka.__version__, missing=missing, tested="constraints.txt")


def addresses(settings: KafkaSettings) -> list[str]:
    """The bootstrap servers; raises Misconfigured if one is no address."""
    servers = [server.strip() for server in settings.bootstrap.split(",") if server.strip()]
    if not servers:
        raise Misconfigured(
            "log.kind is kafka and log.kafka.bootstrap is empty; name the brokers as host:port,host:port",
            setting="log.kafka.bootstrap",
        )
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise Misconfigured(
                f"log.kafka.bootstrap names {server!r}, which is not host:port", setting="log.kafka.bootstrap"
            )
    return servers


def _connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options that every client of kafka-python needs. Raises Misconfigured."""
    return {
        "bootstrap_servers": addresses(settings),
        "client_id": f"plaudit-{uuid.uuid4().hex[:8]}",
        "bootstrap_timeout_ms": int(settings.timeout_seconds * 1000),
        **_security_options(settings),
        # The client waits ever longer between attempts; after an outage nobody should wait half a minute.
        "reconnect_backoff_max_ms": 1000,
    }


def _security_options(settings: KafkaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": settings.security.upper()}
    if settings.security in ("ssl", "sasl_ssl"):
        options["ssl_context"] = tls_context(settings)
    if settings.security.startswith("sasl"):
        options |= {
            "sasl_mechanism": settings.mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return options
