"""`serve.*`: the gRPC server and its HTTP door."""

from __future__ import annotations

from pydantic import Field, SecretStr

from plaudit.settings.section import Section


class ChannelServeSettings(Section):
    """What callers of a channel get."""

    compare_share: float = Field(default=0.0, ge=0, le=1)
    """Share of Generate calls without a number of completions that get two, so that people can compare."""


class ServeSettings(ChannelServeSettings):
    """The gRPC server."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=50051, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    metrics_port: int = Field(default=9464, ge=0, le=65535)
    """Prometheus port; 0 turns it off."""
    http_port: int = Field(default=-1, ge=-1, le=65535)
    """Port of the OpenAI-compatible HTTP door; 0 takes a free one, -1 leaves the door closed."""
    health_port: int = Field(default=0, ge=0, le=65535)
    """Port of gRPC health alone, without encryption: Kubernetes' probes speak no TLS; 0 turns it off."""
    insecure: bool = False
    """Listen beyond loopback without encryption or credentials: something in front of the server does both."""
    workers: int = Field(default=96, ge=1, le=10_000)
    """Maximum number of open calls; a stream or a watch is one until it ends. Further calls get QUEUE_FULL at once."""
    tenants: tuple[str, ...] = ("default",)
    """Tenants that may ask; "*" among them lets callers name any, each a channel of its own."""
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=65_536, le=1_073_741_824)
    """Largest message taken."""
    max_tokens: int = Field(default=512, ge=1, le=1_048_576)
    """Maximum number of tokens of a completion; a caller who asks for more is refused."""
    default_deadline_seconds: float = Field(default=120.0, ge=0.1, le=86_400)
    """Longest time of Generate, StreamGenerate, Choose and every HTTP request; their deadline, if they bring none."""
    stream_seconds: float = Field(default=3600.0, ge=0.1, le=86_400)
    """Longest time of a StreamFeedback or WatchReleases call; it ends with DEADLINE_PASSED and may be opened again."""
    drain_seconds: float = Field(default=25.0, ge=0, le=3_600)
    """Time for calls under way after SIGTERM; Kubernetes gives 30 s, 5 are kept for closing the log."""
    poll_seconds: float = Field(default=0.5, ge=0.01, le=60)
    """How often a replica reads the channel states."""
    cached_releases: int = Field(default=256, ge=1, le=1_000_000)
    """Releases whose files a replica keeps in its data directory; the least recently used of more are fetched again."""
    remembered_mb: int = Field(default=32, ge=0, le=65_536)
    """Memory for the newest answers, which come back if a request is sent again; the embedded log remembers all."""
    handle_ttl_seconds: float = Field(default=7 * 86400, ge=1, le=315_360_000)
    """How long a feedback handle is valid."""
    handle_keys: dict[str, SecretStr] = Field(default_factory=dict)
    """Signing keys by key id, for rotation; empty makes one key in the data directory."""
    handle_key_id: str = ""
    """Key that signs; empty takes the last of handle_keys."""
    pseudonym_key: SecretStr = SecretStr("")
    """Key of the pseudonyms, never rotated; empty makes one in the data directory."""
