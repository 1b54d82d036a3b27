"""Makes the topics that are missing and checks those that are there, when a Kafka log opens.

Enters: Kafka's settings. Leaves: four topics as the log needs them, or an error that says what to change. It never
changes a topic that exists: its settings are the operators' to decide.
"""

from __future__ import annotations

from typing import Any

import structlog
from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from plaudit.errors import LogUnavailable, Misconfigured
from plaudit.eventlog.kafka_clients import connected, unreachable
from plaudit.eventlog.protocol import REJECTED_OVERHEAD_BYTES, Topic, record_limit
from plaudit.settings import KafkaSettings

_log = structlog.get_logger(__name__)

COMPACTION_LAG_MS = 3_600_000  # a channel's superseded states are gone after an hour or so


def ensure_topics(settings: KafkaSettings) -> None:
    """Makes what is missing, checks what is there. Raises Misconfigured or LogUnavailable."""
    names = {topic: settings.topic_prefix + topic for topic in Topic}
    with unreachable(settings):
        admin = connected(KafkaAdminClient, settings, request_timeout_ms=int(settings.timeout_seconds * 1000))
        try:
            found = _partitions(admin, list(names.values()))
            missing = {name: _wanted(topic, settings) for topic, name in names.items() if name not in found}
            if missing:
                _create(admin, missing, settings)
                found = _partitions(admin, list(names.values()))
            _check(admin, names, found)
        finally:
            admin.close()


def _partitions(admin: Any, names: list[str]) -> dict[str, int]:
    """Number of partitions of those topics that exist."""
    return {each["name"]: len(each["partitions"]) for each in admin.describe_topics(names) if not each["error_code"]}


def _wanted(topic: Topic, settings: KafkaSettings) -> dict[str, Any]:
    configs = {
        "cleanup.policy": "delete",
        "max.message.bytes": str(record_limit(topic) + REJECTED_OVERHEAD_BYTES),
        # A record's time is when the log took it; when it happened stands in its envelope.
        "message.timestamp.type": "LogAppendTime",
        # With fewer, "all replicas" may be the leader alone, and what was acknowledged dies with its disk.
        "min.insync.replicas": str(min(2, settings.replication)),
    }
    if topic is Topic.RELEASES:
        configs |= {"cleanup.policy": "compact", "max.compaction.lag.ms": str(COMPACTION_LAG_MS)}
    return {
        # One partition puts the changes of all channels into one order.
        "num_partitions": 1 if topic is Topic.RELEASES else settings.partitions,
        "replication_factor": settings.replication,
        "configs": configs,
    }


def _create(admin: Any, missing: dict[str, dict[str, Any]], settings: KafkaSettings) -> None:
    milliseconds = int(settings.timeout_seconds * 1000)
    for name, wanted in missing.items():
        try:
            admin.create_topics({name: wanted}, timeout_ms=milliseconds)
        except kafka_errors.TopicAlreadyExistsError:
            continue  # another replica starts at the same time
        except kafka_errors.InvalidReplicationFactorError as error:
            raise Misconfigured(
                f"{name} cannot have {settings.replication} replicas ({error}); the cluster has fewer brokers",
                setting="log.kafka.replication",
            ) from error
    admin.wait_for_topics(list(missing), timeout_ms=milliseconds)


def _check(admin: Any, names: dict[Topic, str], found: dict[str, int]) -> None:
    absent = [name for name in names.values() if name not in found]
    if absent:
        raise LogUnavailable(f"the topics {', '.join(absent)} are not ready yet; retry")
    interactions, feedback = names[Topic.INTERACTIONS], names[Topic.FEEDBACK]
    if found[interactions] != found[feedback]:
        raise Misconfigured(
            f"{interactions} has {found[interactions]} partitions and {feedback} has {found[feedback]}; they need as "
            "many, so that one consumer sees an interaction and its feedback: add partitions to the smaller one",
            setting="log.kafka.partitions",
        )
    described = admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in names.values()], config_filter="all"
    )["topic"]
    policy = described[names[Topic.RELEASES]]["cleanup.policy"]["value"]
    if "compact" not in policy:
        raise Misconfigured(
            f"{names[Topic.RELEASES]} has cleanup.policy={policy}; set it to compact, or channels that have not "
            "changed for long are forgotten",
            setting="log.kafka.topic_prefix",
        )
    for topic, name in names.items():
        limit = int(described[name]["max.message.bytes"]["value"])
        if limit < record_limit(topic):
            _log.warning(
                "topic_takes_only_small_records", topic=name, max_message_bytes=limit, want=record_limit(topic)
            )
