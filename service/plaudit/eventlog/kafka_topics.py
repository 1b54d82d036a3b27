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
            found = _found(admin, list(names.values()))
            missing = {name: _wanted(topic, settings) for topic, name in names.items() if name not in found}
            _like_its_twin(missing, names, found)
            if missing:
                _create(admin, missing, settings)
                found = _found(admin, list(names.values()))
            _check(admin, names, found, settings)
        finally:
            admin.close()


def _found(admin: Any, names: list[str]) -> dict[str, list[Any]]:
    """Partitions of those topics that exist."""
    return {each["name"]: each["partitions"] for each in admin.describe_topics(names) if not each["error_code"]}


def _wanted(topic: Topic, settings: KafkaSettings) -> dict[str, Any]:
    return {
        # One partition puts the changes of all channels into one order.
        "num_partitions": 1 if topic is Topic.RELEASES else settings.partitions,
        "replication_factor": settings.replication,
        "configs": {name: value for name, (value, _) in required_configs(topic, settings).items()}
        | {
            "max.message.bytes": str(record_limit(topic) + REJECTED_OVERHEAD_BYTES),
            # A record's time is when the log took it; when it happened stands in its envelope.
            "message.timestamp.type": "LogAppendTime",
        },
    }


def _like_its_twin(missing: dict[str, dict[str, Any]], names: dict[Topic, str], found: dict[str, list[Any]]) -> None:
    """Interactions and feedback have as many partitions: of two, the one that was lost is made like the other."""
    twins = (names[Topic.INTERACTIONS], names[Topic.FEEDBACK])
    for name, other in (twins, twins[::-1]):
        if name in missing and other in found:
            missing[name]["num_partitions"] = len(found[other])


def required_configs(topic: Topic, settings: KafkaSettings) -> dict[str, tuple[str, str]]:
    """Settings of a topic that the log's promises rest on: name, value, and what happens without it."""
    configs = {
        "min.insync.replicas": (
            str(settings.insync),
            "or what was acknowledged may die with the disk of one broker",
        ),
        "unclean.leader.election.enable": ("false", "or a broker that lagged behind may cut off what was acknowledged"),
    }
    if topic is Topic.RELEASES:
        return configs | {
            "cleanup.policy": ("compact", "or channels that have not changed for long are forgotten"),
            "max.compaction.lag.ms": (str(COMPACTION_LAG_MS), "or superseded states stay for ever"),
        }
    days = settings.retention_days
    return configs | {
        "cleanup.policy": ("delete", "or records are dropped by their key"),
        "retention.ms": (
            str(round(days * 86_400_000)) if days else "-1",
            "or records go before log.kafka.retention_days says, or stay longer",
        ),
        "retention.bytes": ("-1", "or records go before log.kafka.retention_days says"),
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


def _check(admin: Any, names: dict[Topic, str], found: dict[str, list[Any]], settings: KafkaSettings) -> None:
    absent = [name for name in names.values() if name not in found]
    if absent:
        raise LogUnavailable(f"the topics {', '.join(absent)} are not ready yet; retry")
    interactions, feedback = names[Topic.INTERACTIONS], names[Topic.FEEDBACK]
    one, other = len(found[interactions]), len(found[feedback])
    if one != other:
        raise Misconfigured(
            f"{interactions} has {one} partitions and {feedback} has {other}; they need as many, so "
            "that one consumer sees an interaction and its feedback: add partitions to the smaller one",
            setting="log.kafka.partitions",
        )
    described = admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in names.values()], config_filter="all"
    )["topic"]
    wrong = []
    for topic, name in names.items():
        copies = min(len(each["replica_nodes"]) for each in found[name])
        if copies < settings.replication:
            wrong.append(
                f"{name} has {copies} copies of each record and log.kafka.replication is {settings.replication}: "
                "reassign its partitions"
            )
        for config, (wanted, otherwise) in required_configs(topic, settings).items():
            actual = described[name][config]["value"]
            if not _fits(config, actual, wanted):
                wrong.append(f"{name} has {config}={actual}: set it to {wanted}, {otherwise}")
        limit = int(described[name]["max.message.bytes"]["value"])
        if limit < record_limit(topic):
            _log.warning(
                "topic_takes_only_small_records", topic=name, max_message_bytes=limit, want=record_limit(topic)
            )
    if wrong:
        raise Misconfigured(
            "topics do not fit the settings, and Plaudit changes none that exist: " + "; ".join(wrong),
            setting="log.kafka",
        )


def _fits(config: str, actual: str, wanted: str) -> bool:
    """Equal, or stricter if more is better."""
    if config == "min.insync.replicas":
        return int(actual) >= int(wanted)
    if config == "max.compaction.lag.ms":
        return int(actual) <= int(wanted)
    return actual == wanted
