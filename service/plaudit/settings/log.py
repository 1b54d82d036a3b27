"""`log.*`: the event log."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from plaudit.settings.section import Section


class KafkaSettings(Section):
    """Kafka as the event log."""

    bootstrap: str = ""
    """Bootstrap servers, comma separated."""
    topic_prefix: str = ""
    """Put before each topic's name, so that two deployments share a cluster."""
    partitions: int = Field(default=6, ge=1, le=10_000)
    """Partitions of topics made at start; plaudit.releases has one."""
    replication: int = Field(default=1, ge=1, le=16)
    """Minimum number of copies of each record; topics made at start have this many."""
    min_insync_replicas: int = Field(default=0, ge=0, le=16)
    """Minimum number of copies before a record is acknowledged; 0 is two, or one if there is one copy only."""
    retention_days: float = Field(default=90.0, ge=0, le=36_500)
    """Days that topics keep interactions, feedback and rejections; 0 keeps them for ever."""
    timeout_seconds: float = Field(default=10.0, ge=0.1, le=600)
    """Longest wait for the brokers to acknowledge a record."""
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    """How connections are secured; ssl with a client certificate is mutual TLS."""
    mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"] = "SCRAM-SHA-512"
    """How sasl proves the password."""
    username: str = ""
    """User of sasl."""
    password: SecretStr = SecretStr("")
    """Password of sasl."""
    ca_file: str = ""
    """PEM file of the authorities that sign the brokers' certificates; empty takes the machine's own."""
    client_cert_file: str = ""
    """PEM file of this client's certificate, for mutual TLS."""
    client_key_file: str = ""
    """PEM file of the key of that certificate."""
    client_key_password: SecretStr = SecretStr("")
    """Password of that key, if it has one."""

    @property
    def insync(self) -> int:
        """Copies that a record has before it is acknowledged."""
        return self.min_insync_replicas or min(2, self.replication)

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.min_insync_replicas > self.replication:
            raise ValueError(
                f"min_insync_replicas={self.min_insync_replicas} is too large: replication={self.replication} makes no "
                f"more copies; the largest is min_insync_replicas={self.replication}"
            )
        if self.security.startswith("sasl") and not (self.username and self.password.get_secret_value()):
            raise ValueError(f"security={self.security} needs username and password")
        if bool(self.client_cert_file) != bool(self.client_key_file):
            raise ValueError("client_cert_file and client_key_file belong together; give both or neither")
        return self


class OutboxSettings(Section):
    """The outbox: where `plaudit serve` keeps records that Kafka does not take in time."""

    max_mb: int = Field(default=1024, ge=0, le=1_000_000)
    """Maximum size (MiB) of the outbox in the data directory; 0: no outbox, and calls are refused instead."""
    patience_seconds: float = Field(default=1.0, ge=0.05, le=600)
    """Longest wait for the brokers to acknowledge a record before it goes to the outbox."""


class LogSettings(Section):
    """The event log."""

    kind: Literal["sqlite", "kafka"] = "sqlite"
    """Embedded (SQLite in the data directory) or Kafka."""
    kafka: KafkaSettings = KafkaSettings()
    """Kafka, if kind is kafka."""
    outbox: OutboxSettings = OutboxSettings()
    """What stands in front of Kafka while it is away."""
