"""Settings of every process: file < environment < flags.

A file is TOML (`plaudit.toml`, or what PLAUDIT_CONFIG or --config names). Environment variables are
`PLAUDIT_` + path with double underscores (`PLAUDIT_SERVE__PORT=50051`). Flags are `--set serve.port=50051`.
Lists and tables are JSON in the environment and in flags (`--set 'engine.widths=[4, 16]'`). An unknown key
anywhere is an error that names the nearest known one; all problems are reported at once. Secrets never leave
this module in clear: `resolved` masks them and `digest` does not depend on them.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_serializer, model_validator

from plaudit.deciding import cost_faults
from plaudit.errors import Misconfigured
from plaudit.types import Channel

DEFAULT_CONFIG = Path("plaudit.toml")
STORE_FILE = "evidence.sqlite"  # in the data directory, unless store.url names another database
ADDRESS_FILE = "serve.json"  # in the data directory: where a replica of this machine listens
ENV_PREFIX = "PLAUDIT_"
# Variables with the prefix that are not settings; a name that ends in "_" stands for all that begin with it.
ENV_OTHER = (
    *("PLAUDIT_CONFIG", "PLAUDIT_DATA", "PLAUDIT_CACHE", "PLAUDIT_TEST_", "PLAUDIT_FAIL_POINT"),
    *("PLAUDIT_KEY", "PLAUDIT_ROOT_CERTIFICATES", "PLAUDIT_CLIENT_"),  # of clients: plaudit.access.credentials
)
# Kubernetes puts such variables into every pod beside a service called plaudit or plaudit-...
_SERVICE_LINK = re.compile(r"PLAUDIT_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """The frozen base."""

    path: str = ""
    """Folder with weights, tokenizer and chat template, or a hub id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes CUDA if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format; auto is float32 on CPU, bfloat16 on CUDA."""
    threads: int = Field(default=0, ge=0, le=65_536)
    """CPU threads of the model; 0 leaves the library's choice."""
    adapter_layers: int = Field(default=10, ge=1, le=1024)
    """Adapters sit on this many upper layers; the trunk below is shared by policy, reference, value and reward."""
    adapter_rank: int = Field(default=8, ge=1, le=64)
    """LoRA rank."""
    adapter_alpha: int = Field(default=16, ge=1, le=1024)
    """LoRA alpha; the scale is alpha / rank."""
    learner_dtype: Literal["engine", "auto", "float32", "bfloat16"] = "engine"
    """Format of the frozen linears in the learner's own passes on CPUs; engine: as engine.dtype; auto: as there."""


class VllmSettings(Section):
    """vLLM servers that run the model of `plaudit serve` (docs/vllm.md)."""

    servers: tuple[str, ...] = ()
    """Address of each server (http://host:port): every replica itself, not a balancer in front of them."""
    api_key: SecretStr = SecretStr("")
    """Key that the servers ask for (their --api-key)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Number format that the servers compute in (their --dtype); it decides how exactly a release is proved."""
    adapters: str = ""
    """Folder for adapters that the servers can read; empty is vllm-adapters/ in the data directory."""
    adapters_there: str = ""
    """The same folder by the path under which the servers see it; empty is the same path."""
    check_base: bool = True
    """Compare the servers' base with the weights in model.path, which are loaded for it once per data directory."""
    silence_seconds: float = Field(default=60.0, ge=0.1, le=3_600)
    """Longest time without a byte of an answer; then the request goes on at another server."""
    patience_seconds: float = Field(default=10.0, ge=0, le=3_600)
    """How long a request looks for a server that answers before it is refused with ENGINE_UNAVAILABLE."""


class EngineSettings(Section):
    """Decoding."""

    kind: Literal["torch", "vllm"] = "torch"
    """What runs the model that is served: this process, or vLLM servers."""
    vllm: VllmSettings = VllmSettings()
    """vLLM servers, where kind is vllm."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Format of the frozen linears that serve and sample on CPUs; auto: bfloat16 if the processor multiplies it."""
    widths: tuple[int, ...] = (4, 16, 64)
    """Batch widths, ascending; a completion keeps its width, so that its bits never depend on other traffic."""
    adapter_slots: int = Field(default=6, ge=2, le=64)
    """Adapters that can be staged at once, the base not counted."""
    max_waiting: int = Field(default=512, ge=1, le=1_000_000)
    """Completions that may wait for a slot; more are refused with QUEUE_FULL."""
    prefill_chunk: int = Field(default=128, ge=16, le=65_536)
    """Prompt tokens computed between two decode steps, and most tokens of options."""
    kv_memory_mb: int = Field(default=0, ge=0, le=10_000_000)
    """Memory (MiB) for keys and values; 0 is a quarter of the machine's, the container's or the GPU's."""
    score_memory_mb: int = Field(default=256, ge=16, le=65_536)
    """Memory (MiB) for scoring the options of a choice; they are computed in pieces that fit."""
    score_tokens: int = Field(default=65_536, ge=1, le=10_000_000)
    """Largest number of tokens of one choice's options, shared beginnings counted once (OPTIONS_TOO_LONG)."""
    context_length: int = Field(default=0, ge=0, le=1_048_576)
    """Maximum number of tokens of prompt and completion; 0 takes the model's own, up to 2,048."""

    @model_validator(mode="after")
    def _servers_are_named(self) -> Self:
        if self.kind == "vllm" and not self.vllm.servers:
            raise ValueError('kind=vllm needs servers; name them, such as vllm.servers=["http://127.0.0.1:8000"]')
        return self


class ChannelServeSettings(Section):
    """What callers of a channel get."""

    compare_share: float = Field(default=0.0, ge=0, le=1)
    """Share of Generate calls which leave the number of completions open that get two, so that people can compare."""


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
    """Open calls; a stream or a watch is one until it ends. What is above is answered QUEUE_FULL at once."""
    tenants: tuple[str, ...] = ("default",)
    """Tenants that may ask; "*" among them lets callers name any, each a channel of its own."""
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=65_536, le=1_073_741_824)
    """Largest message taken."""
    max_tokens: int = Field(default=512, ge=1, le=1_048_576)
    """Maximum number of tokens that a caller may ask for."""
    default_deadline_seconds: float = Field(default=120.0, ge=0.1, le=86_400)
    """Longest time of a call, and its deadline if it brings none; streams of feedback and watches have another."""
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
    """How long a feedback handle is good."""
    handle_keys: dict[str, SecretStr] = Field(default_factory=dict)
    """Signing keys by key id, for rotation; empty makes one key in the data directory."""
    handle_key_id: str = ""
    """Key that signs; empty takes the last of handle_keys."""
    pseudonym_key: SecretStr = SecretStr("")
    """Key of the pseudonyms, never rotated; empty makes one in the data directory."""


class TlsSettings(Section):
    """Encryption of the gRPC port and the HTTP door; the files are read anew when they change (docs/access.md)."""

    certificate: str = ""
    """File with the server's certificate chain (PEM); empty: the ports are not encrypted."""
    key: str = ""
    """File with the certificate's private key (PEM)."""
    client_ca: str = ""
    """File with the authorities of callers' certificates (PEM); if it is set, every caller must show one."""

    @model_validator(mode="after")
    def _a_certificate_has_its_key(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together; set both or neither")
        if self.client_ca and not self.certificate:
            raise ValueError("client_ca needs a certificate and its key: callers' certificates come with encryption")
        return self


class TokenSettings(Section):
    """Tokens of an identity provider (OpenID Connect)."""

    jwks: str = ""
    """The provider's public keys (JWKS): a file, or the provider's https URL; empty: no tokens are taken."""
    issuer: str = ""
    """Issuer (iss) that tokens must name."""
    audience: str = ""
    """Audience (aud) that tokens must name: this service's name at the provider."""
    algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"], ...
    ] = ("RS256", "ES256")
    """Signatures that are taken."""


class LimitSettings(Section):
    """How much each may send to one replica; above it calls are RATE_LIMITED and told how long to wait. 0: no limit."""

    key_per_minute: float = Field(default=0, ge=0, le=100_000_000)
    """Calls of one key or token, and items of its streams."""
    tenant_per_minute: float = Field(default=0, ge=0, le=100_000_000)
    """Requests and pieces of feedback of one tenant."""
    rater_per_minute: float = Field(default=0, ge=0, le=100_000_000)
    """Acts of one rater."""
    raters_per_handle: int = Field(default=100, ge=0, le=1_000_000)
    """Different raters who may give feedback on one interaction (TOO_MANY_RATERS); 0: any number."""


class AccessSettings(Section):
    """Who may call (docs/access.md)."""

    required: bool = False
    """Every call needs an API key or a token; else whoever reaches the port may call everything."""
    remember_seconds: float = Field(default=5.0, ge=0, le=3_600)
    """How long a replica remembers a key, and so the longest time until a revocation acts."""
    tls: TlsSettings = TlsSettings()
    """Encryption."""
    tokens: TokenSettings = TokenSettings()
    """Tokens of an identity provider."""
    limits: LimitSettings = LimitSettings()
    """Limits on what each may send."""


class KafkaSettings(Section):
    """Kafka as the event log."""

    bootstrap: str = ""
    """Bootstrap servers, comma separated."""
    topic_prefix: str = ""
    """Put before each topic's name, so that two deployments share a cluster."""
    partitions: int = Field(default=6, ge=1, le=10_000)
    """Partitions of topics made at start."""
    replication: int = Field(default=1, ge=1, le=16)
    """Minimum number of copies of each record; topics made at start have so many."""
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


class StoreSettings(Section):
    """Evidence and registry."""

    url: SecretStr = SecretStr("")
    """SQLAlchemy URL of evidence and channel states; empty is evidence.sqlite in the data directory."""
    registry: str = ""
    """Where artifacts lie (an fsspec URL); empty is registry/ in the data directory."""


class JoinSettings(Section):
    """The join."""

    batch_records: int = Field(default=500, ge=1, le=100_000)
    """Records of one transaction."""
    poll_seconds: float = Field(default=0.5, ge=0.01, le=60)
    """Wait for new records."""
    max_wait_seconds: float = Field(default=3600.0, ge=1, le=31_536_000)
    """Feedback whose interaction has not come after this time is rejected as NO_INTERACTION."""
    metrics_port: int = Field(default=9465, ge=0, le=65535)
    """Prometheus port, on serve.host; 0 turns it off."""


class RewardSettings(Section):
    """The reward model (docs/reward.md)."""

    heads: int = Field(default=3, ge=1, le=64)
    """Ensemble members; each sees bootstrap weights of its own."""
    adapter: bool = True
    """Train a LoRA adapter beside the heads; heads alone on frozen features if false."""
    layer: int = Field(default=0, ge=0, le=1024)
    """Heads read what comes out of this layer (counted from 1); 0 is two thirds of the way up."""
    adapter_layers: int = Field(default=4, ge=1, le=1024)
    """Layers below the one that is read that carry the adapter; fewer fit faster, and the trunk below is run once."""
    adapter_lr: float = Field(default=2e-3, ge=1e-6, le=0.1)
    """AdamW step size of the adapter."""
    head_lr: float = Field(default=1e-3, ge=1e-6, le=0.1)
    """AdamW step size of the heads."""
    epochs: float = Field(default=1.0, ge=0.05, le=100)
    """Passes over the evidence, from base."""
    units_per_step: int = Field(default=6, ge=1, le=4_096)
    """Units (a pair, a ranking, one rater's thumbs) of one step."""
    center: float = Field(default=0.01, ge=0, le=1)
    """Weight of the centring regulariser."""
    rater_cap: float = Field(default=20.0, ge=1, le=1_000_000)
    """Maximum total weight of one rater, in events."""
    half_life_days: float = Field(default=30.0, ge=0.01, le=100_000)
    """Age at which evidence counts half."""
    place_offsets: bool = True
    """Correct choices and signals about ordered options for the place that an option stood in."""
    signal_noise: float = Field(default=0.3, ge=0, le=0.45)
    """Rate at which a signal errs before anything is known of it; 0 takes signals for what people think."""
    uncertainty: float = Field(default=0.5, ge=0, le=10)
    """Weight of the heads' spread in the pessimistic score (lambda_u)."""
    temperature: float = Field(default=1.5, ge=0.05, le=20)
    """Temperature of the squashing of the score (tau_R)."""
    references: int = Field(default=4, ge=1, le=64)
    """Base samples per prompt that centre the score."""


class PolicySettings(Section):
    """The policy's optimiser (docs/learner.md)."""

    temperature: float = Field(default=0.7, ge=0.05, le=5)
    """The policy is softmax(logits / temperature); a temperature of the domain's own decode_spec comes first."""
    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    """Longest completion of callers who name none, and of rollouts, gate and proof alike; unset is the domain's."""
    iterations: int = Field(default=10, ge=1, le=1_000)
    """Rollout-and-update iterations of a turn."""
    prompts: int = Field(default=16, ge=1, le=4_096)
    """Prompts of a rollout."""
    samples: int = Field(default=4, ge=1, le=64)
    """Completions of each prompt of a rollout, or drawn orders of its options (minimum two)."""
    held_out: int = Field(default=24, ge=0, le=4_096)
    """Prompts that no update uses, on which states of the policy are compared; up to a quarter of all; 0: none."""
    compared: int = Field(default=2, ge=1, le=1_000)
    """States of the policy that are compared with its start, evenly spread over the iterations."""
    practice_share: float = Field(default=0.15, ge=0, le=0.5)
    """Share of a rollout's prompts that are practice cases of the domain, minimum one if it has any; 0: none."""
    practice_penalty: float = Field(default=1.0, ge=0, le=4)
    """Reward that an answer to a practice case loses if it does the harm; a score of the reward model is at most 1."""
    epochs: int = Field(default=2, ge=1, le=100)
    """Maximum passes over a rollout."""
    minibatch: int = Field(default=16, ge=1, le=4_096)
    """Sequences of one update."""
    update_kl: float = Field(default=0.02, ge=1e-5, le=10)
    """Nats per token that the policy may move on one rollout; its updates end there."""
    lr: float = Field(default=1e-3, ge=1e-7, le=0.1)
    """AdamW step size after warm-up."""
    warmup_updates: int = Field(default=4, ge=0, le=10_000)
    """Updates over which the step size rises."""
    clip_range: float = Field(default=0.2, ge=0.01, le=1)
    """PPO's epsilon."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    max_grad_norm: float = Field(default=1.0, ge=0.001, le=1_000)
    """Gradient clipping."""
    kl_coef: float = Field(default=0.02, ge=0, le=10)
    """Reward that a nat of KL to the base costs as the controller begins."""
    kl_live_coef: float = Field(default=0.02, ge=0, le=10)
    """Reward that a nat of KL to the live release costs in training, unless that is the base, and as states compare."""
    kl_target: float = Field(default=10.0, ge=0.01, le=1_000)
    """KL to the base that the controller aims at, nats per sequence."""
    advantage: Literal["gae", "rloo"] = "rloo"
    """Leave-one-out, or against values foreseen by the reward model's outlook on each prefix (GAE)."""
    choice_prompts: int = Field(default=64, ge=1, le=4_096)
    """Prompts of an iteration in domains of choices; `minibatch` prompts of them are an update."""
    choice_update_kl: float = Field(default=1.0, ge=1e-5, le=10)
    """Nats per choice that the policy may move in one iteration; its updates end there."""
    choice_kl_target: float = Field(default=2.0, ge=0.01, le=1_000)
    """KL to the base of what is shown that the controller aims at in domains of choices, nats per choice."""
    first_place: Literal["exact", "sampled"] = "exact"
    """Where only the first place counts: its reward expected over all options, or that of `samples` drawn ones."""
    label_coef: float = Field(default=1.0, ge=0, le=10)
    """Reward that a nat of cross-entropy of people's labels costs; 0: labels teach through the reward alone."""
    pass_tokens: int = Field(default=2_048, ge=16, le=1_000_000)
    """Tokens of prompts and options that the trainer of choices holds activations of all its layers of at once."""
    trunk_tokens: int = Field(default=100_000, ge=0, le=100_000_000)
    """Tokens whose trunk activations the trainer and the reward model of choices may hold from one pass to the next."""

    @model_validator(mode="after")
    def _leave_one_out_has_others(self) -> Self:
        if self.advantage == "rloo" and self.samples < 2:
            raise ValueError("samples=1 leaves advantage=rloo no other sample; the smallest is samples=2, or take gae")
        return self


class GateSettings(Section):
    """What a candidate release must show (docs/release.md)."""

    prompts: int = Field(default=100, ge=1, le=100_000)
    """Gate prompts asked."""
    min_prompts: int = Field(default=60, ge=1, le=100_000)
    """With fewer gate prompts in the log the gate refuses."""
    samples: int = Field(default=4, ge=1, le=64)
    """Completions per prompt."""
    kl_base: float = Field(default=16.0, ge=0.1, le=1_000)
    """Maximum KL to the base, nats per sequence."""
    kl_live: float = Field(default=12.0, ge=0.1, le=1_000)
    """Maximum KL to the live release, nats per sequence."""
    win_base: float = Field(default=0.5, ge=0, le=1)
    """The lower 95% bound of the win-rate against the base must exceed this."""
    win_live: float = Field(default=0.45, ge=0, le=1)
    """The lower 95% bound of the win-rate against the live release must exceed this."""
    distinct_ratio: float = Field(default=0.75, ge=0, le=1)
    """Minimum distinct-2, as a share of the base's."""
    masked_ratio: float = Field(default=0.35, ge=0, le=1)
    """Minimum share of different answers once the question's own words are masked, relative to the base's."""
    opening_share: float = Field(default=0.3, ge=0, le=1)
    """Maximum share of answers with the commonest three first words; more if the base has more (docs/release.md)."""
    term_fall: float = Field(default=0.05, ge=0, le=2)
    """Maximum by which the mean of one of the domain's own reward terms may surely be below the base's."""
    probe_rate: float = Field(default=0.05, ge=0.001, le=0.5)
    """Rate of a harm that the domain's probes must be able to see, and the most that is ever allowed."""
    probe_power: float = Field(default=0.95, ge=0.5, le=0.9999)
    """Probability with which a harm of that rate shows at least once; it sets how many answers are asked per harm."""
    reward_comparisons: int = Field(default=150, ge=1, le=1_000_000)
    """Comparisons of calibration raters below which a turn waits."""
    reward_raters: int = Field(default=5, ge=1, le=100_000)
    """Calibration raters below which a turn waits."""
    reward_margin: float = Field(default=0.02, ge=0, le=2)
    """Choices: how much less expected reward than live's the lower 95% bound may show."""
    choice_kl_base: float = Field(default=6.0, ge=0.01, le=1_000)
    """Choices: maximum KL to the base, nats of the first place, and per place of a slate."""
    choice_kl_live: float = Field(default=4.0, ge=0.01, le=1_000)
    """Choices: maximum KL to the live release, nats of the first place, and per place of a slate."""
    choice_share: float = Field(default=0.3, ge=0, le=1)
    """Choices: share below which the commonest decision always is; more if labels or base have more."""
    choice_coverage: float = Field(default=0.35, ge=0, le=1)
    """Choices: minimum number of different options, relative to the labels' or the base's."""
    min_labelled: int = Field(default=30, ge=1, le=100_000)
    """Choices with labels: labelled gate prompts below which the gate refuses."""
    label_margin: float = Field(default=0.05, ge=0, le=1)
    """Choices with labels: how much less cost-weighted accuracy than base and live the lower 95% bound may show."""
    missed_severe: float = Field(default=0.25, ge=0.001, le=1)
    """Choices with severe labels: maximum upper 95% bound of the share of severe prompts that are missed."""
    estimate_ess: float = Field(default=50.0, ge=2, le=1_000_000)
    """Choices: effective number of drawn interactions below which no off-policy estimate is shown."""
    estimate_interactions: int = Field(default=400, ge=1, le=100_000)
    """Choices: maximum drawn interactions that the estimate reads, the newest first."""

    @model_validator(mode="after")
    def _enough_may_be_asked(self) -> Self:
        if self.min_prompts > self.prompts:
            raise ValueError(
                f"min_prompts={self.min_prompts} is too large: prompts={self.prompts} are asked at most, so no gate "
                f"would ever pass; the largest is min_prompts={self.prompts}"
            )
        return self


class ChannelLearnSettings(Section):
    """When a channel learns, and what becomes of what it learnt."""

    min_events: int = Field(default=200, ge=1, le=100_000_000)
    """New training events that start a turn."""
    promote: bool = True
    """Promote what the gate accepts; otherwise an operator does."""
    seed: int = Field(default=0, ge=0, le=4_294_967_295)
    """Seed of all that is drawn; the turn that makes version v draws from seed + v."""
    quarantine_acts_per_minute: int = Field(default=0, ge=0, le=1_000_000)
    """A rater who gives more feedback within a minute is put in quarantine before a turn (docs/access.md); 0: none."""
    quarantine_one_answer: int = Field(default=0, ge=0, le=1_000_000)
    """The same for a rater with this many thumbs or comparisons, all one way, if others answer otherwise; 0: nobody."""
    kept_mb: int = Field(default=512, ge=0, le=1_000_000)
    """Maximum size (MiB) of the features, and of the base answers, that a turn leaves on disk for the next; 0: none."""
    compared_turns: int = Field(default=0, ge=0, le=1_000)
    """Newest turns whose compared states' answers to held-out prompts stay in `kept/`, for a judge; 0: none."""


class LearnSettings(ChannelLearnSettings):
    """The learner."""

    poll_seconds: float = Field(default=1.0, ge=0.01, le=3_600)
    """Wait between looks at the evidence."""
    backoff_seconds: float = Field(default=600.0, ge=1, le=86_400)
    """Longest pause of a channel whose turns fail; the first is two seconds, and each failure doubles it."""
    nice: int = Field(default=10, ge=0, le=19)
    """Niceness, so that serving goes first on few cores."""
    max_turns: int = Field(default=0, ge=0, le=1_000_000)
    """Turns after which the learner ends; 0 never."""
    process_seconds: float = Field(default=1_800, ge=1, le=86_400)
    """Longest wait of a learner that torchrun started for its other processes, at the start and at each pass."""
    metrics_port: int = Field(default=9466, ge=0, le=65535)
    """Prometheus port of a learner that goes on (not of `--once`), on serve.host; 0 turns it off."""


class DecisionSettings(Section):
    """What decisions cost in domains of verdicts (docs/serving.md)."""

    costs: tuple[tuple[str, str, float], ...] = ()
    """(true label, decided label, cost): each comes before the domain's own cost of that pair; 0 or more."""

    @model_validator(mode="after")
    def _costs_are_costs(self) -> Self:
        if faults := cost_faults(self.costs):
            raise ValueError(faults[0])
        return self


class ChannelPrivacySettings(Section):
    """What of people's data a channel keeps (docs/privacy.md)."""

    redact: tuple[Literal["email", "phone", "iban", "card", "ip", "secret"], ...] = ()
    """Kinds of personal data that placeholders replace in requests and feedback, before anything else reads them."""
    store: bool = True
    """Keep the texts of requests that say nothing of consent."""
    train: bool = True
    """Learn from requests that say nothing of consent."""
    retention_days: float = Field(default=0.0, ge=0, le=36_500)
    """Days after which interactions, feedback and evidence are deleted; 0 keeps them for ever."""


class PrivacySettings(ChannelPrivacySettings):
    """What of people's data is kept, and how it ends."""

    sweep_seconds: float = Field(default=60.0, ge=0.01, le=86_400)
    """How often the join looks for what is to be deleted."""
    retrain_days: float = Field(default=7.0, ge=0, le=3_650)
    """Days in which a release that learnt from somebody who was erased is replaced; then it is rolled back."""
    person_keys: bool = False
    """Seal what the log keeps of a person with a key of their own, kept in the store and destroyed by an erasure."""
    receipt_key: SecretStr = SecretStr("")
    """Key that signs receipts of erasures; empty makes one in the data directory."""


class ChannelSettings(Section):
    """What a channel has otherwise than the process; only what is set counts."""

    serve: ChannelServeSettings = ChannelServeSettings()
    reward: RewardSettings = RewardSettings()
    policy: PolicySettings = PolicySettings()
    gate: GateSettings = GateSettings()
    learn: ChannelLearnSettings = ChannelLearnSettings()
    decision: DecisionSettings = DecisionSettings()
    privacy: ChannelPrivacySettings = ChannelPrivacySettings()

    @model_serializer
    def _only_what_is_set(self) -> dict[str, Any]:
        return {
            name: getattr(self, name).model_dump(mode="json", exclude_unset=True)
            for name in type(self).model_fields
            if name in self.model_fields_set
        }

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """What is set, by section."""
        return {name: _set_values(getattr(self, name)) for name in type(self).model_fields}


def _set_values(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in sorted(section.model_fields_set)}


class PluginSettings(Section):
    """Domains."""

    allow: tuple[str, ...] | None = None
    """Domains that may load; unset is all that are installed, empty is none."""
    budget_seconds: float = Field(default=5.0, ge=0.01, le=600)
    """Longest call of a domain's member; a longer one fails that request, record or turn, and the thread is left."""


class Settings(Section):
    """All settings."""

    data_dir: Path = Path("plaudit-data")
    """Directory shared by the processes of one machine."""
    log_format: Literal["text", "json"] = "text"
    """Format of the logs on standard error."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    model: ModelSettings = ModelSettings()
    """The frozen base."""
    engine: EngineSettings = EngineSettings()
    """Decoding."""
    serve: ServeSettings = ServeSettings()
    """The gRPC server."""
    access: AccessSettings = AccessSettings()
    """Who may call."""
    log: LogSettings = LogSettings()
    """The event log."""
    store: StoreSettings = StoreSettings()
    """Evidence and registry."""
    join: JoinSettings = JoinSettings()
    """The join."""
    reward: RewardSettings = RewardSettings()
    """The reward model."""
    policy: PolicySettings = PolicySettings()
    """PPO."""
    gate: GateSettings = GateSettings()
    """The gate."""
    learn: LearnSettings = LearnSettings()
    """The learner."""
    decision: DecisionSettings = DecisionSettings()
    """What decisions cost."""
    privacy: PrivacySettings = PrivacySettings()
    """What of people's data is kept."""
    plugins: PluginSettings = PluginSettings()
    """Domains."""
    channels: dict[str, ChannelSettings] = Field(default_factory=dict)
    """Other values of reward, policy, gate, decision, privacy, and what channels have of learn and serve."""

    @model_validator(mode="after")
    def _channels_stand_as_a_whole(self) -> Self:
        for pattern in self.channels:
            if "/" not in pattern:
                shown, likely = _quoted(pattern), _quoted(f"{pattern}/*")
                raise ValueError(f"channels.{shown} names no channel; write domain/tenant, such as {likely}")
            try:
                self._with([pattern])
            except ValidationError as error:
                words = "; ".join(str(each["ctx"]["error"]) for each in error.errors(include_url=False))
                raise ValueError(f"channels.{_quoted(pattern)}: {words}") from error
        return self

    def for_channel(self, channel: Channel) -> Settings:
        """The settings in force for a channel.

        Of the patterns in `channels` that match its name ("domain/tenant", with *, ? and [...]) each adds what it
        sets; where two set the same, the one with more characters that are not wildcards wins, of equal ones the
        alphabetically later, and a name without wildcards over all. The order in the file does not matter.
        """
        return self._with([pattern for pattern in self.channels if fnmatch.fnmatchcase(str(channel), pattern)])

    @property
    def policies(self) -> list[PolicySettings]:
        """The process's policy settings and those of every pattern: what a shared engine must be made for."""
        return [self.policy, *(self._with([pattern]).policy for pattern in self.channels)]

    @property
    def shortest_retention_days(self) -> float:
        """The fewest days after which something is deleted in any channel; 0 if all is kept for ever."""
        every = [self.privacy, *(self._with([pattern]).privacy for pattern in self.channels)]
        return min((each.retention_days for each in every if each.retention_days), default=0.0)

    def _with(self, patterns: Sequence[str]) -> Settings:
        changed: dict[str, dict[str, Any]] = {}
        for pattern in sorted(patterns, key=_exactness):
            for name, values in self.channels[pattern].values.items():
                changed.setdefault(name, {}).update(values)
        sections = {
            name: type(section).model_validate({**dict(section), **values})
            for name, values in changed.items()
            if values and (section := getattr(self, name))
        }
        return self.model_copy(update=sections) if sections else self

    @property
    def store_url(self) -> str:
        """SQLAlchemy URL in force."""
        return self.store.url.get_secret_value() or f"sqlite:///{(self.data_dir / STORE_FILE).absolute()}"

    def check_has_run(self) -> None:
        """Raises Misconfigured if the store would be a file of the data directory and there is none."""
        file = self.data_dir / STORE_FILE
        if not self.store.url.get_secret_value() and not file.exists():
            raise Misconfigured(
                f"there is no {file}: nothing has run in this data directory; start it with `plaudit up`, or name "
                "another with --data-dir",
                setting="data_dir",
            )

    @property
    def registry_root(self) -> str:
        """Artifact root in force."""
        return self.store.registry or str((self.data_dir / "registry").absolute())


def _exactness(pattern: str) -> tuple[bool, int, str]:
    wild = len(re.findall(r"\[[^]]*\]|[*?]", pattern))
    return not wild, len(re.sub(r"\[[^]]*\]|[*?]", "", pattern)), pattern


def _quoted(pattern: str) -> str:
    return json.dumps(pattern, ensure_ascii=False)


class _Sources:
    """Values of all sources by path, the last source winning, and every problem met on the way."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self._origins: dict[str, str] = {}

    def put(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        """Take one value; a path that no setting has becomes a problem."""
        known = dict(fields())
        if len(path) == 4 and path[0] == "channels":
            self._put_channel(path, value, origin)
            return
        name = ".".join(path)
        if name not in known:
            self.problems.append(f"{origin}: unknown key {name!r}{_nearest(name, known)}")
            return
        here = self.values
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
        self._origins[name] = origin

    def _put_channel(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        """Take one value of one channel; pydantic knows whether there is such a key."""
        here = self.values
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
        self._origins[".".join(path)] = origin

    def put_text(self, path: tuple[str, ...], text: str, origin: str) -> None:
        """Take a value written as text: JSON for lists and tables, else as it stands."""
        if len(path) == 4 and path[0] == "channels":
            annotation = dict(fields(ChannelSettings)).get(".".join(path[2:]))
        else:
            annotation = dict(fields()).get(".".join(path))
        if annotation is None or not _is_compound(annotation):
            self.put(path, text, origin)
            return
        try:
            self.put(path, json.loads(text), origin)
        except ValueError:
            # The text is not shown: it may be a table of keys.
            self.problems.append(f'{origin}: {".".join(path)} must be JSON, such as [4, 16] or {{"name": "value"}}')

    def origin(self, path: tuple[object, ...]) -> str:
        """Where the value at or above `path` came from."""
        for end in range(len(path), 0, -1):
            found = self._origins.get(".".join(str(part) for part in path[:end]))
            if found:
                return found
        return "defaults"


def fields(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and annotation of every setting, in the order of declaration."""
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from fields(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


def load_settings(
    config: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings in force: file < environment < `overrides` ("key=value"); raises one Misconfigured for all problems.

    Without `config` the file is what PLAUDIT_CONFIG names, else plaudit.toml if there is one. `environ` is
    the process's environment if None.
    """
    environ = os.environ if environ is None else environ
    sources = _Sources()
    _read_file(sources, config, environ)
    for name in sorted(environ):
        if _is_setting(name, environ[name]):
            path = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
            sources.put_text(path, environ[name], f"environment variable {name}")
    for item in overrides:
        key, equals, text = item.partition("=")
        if equals:
            sources.put_text(_path(key.strip()), text, f"--set {key.strip()}")
        else:
            sources.problems.append(f"--set {item}: write it as key=value, such as serve.port=50051")
    settings = None
    try:
        settings = Settings.model_validate(sources.values)
    except ValidationError as error:
        sources.problems += [_words(problem, sources) for problem in error.errors(include_url=False)]
    if settings is None or sources.problems:
        count = f"{len(sources.problems)} problem{'s' * (len(sources.problems) != 1)} with the settings"
        raise Misconfigured("\n".join([f"{count}:", *(f"- {line}" for line in sources.problems)]), setting="settings")
    return settings


def _path(key: str) -> tuple[str, ...]:
    """Parts of a dotted key; a part in quotation marks may hold dots, as in channels."a/b.c".policy.lr."""
    return tuple(quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', key)) or (key,)


def resolved(settings: Settings) -> dict[str, Any]:
    """Settings in force as plain JSON types, with secrets masked."""
    dumped: dict[str, Any] = settings.model_dump(mode="json")
    return dumped


def digest(settings: Settings) -> str:
    """SHA-256, in hex, of the masked settings: equal for equal settings, whatever the secrets are."""
    return hashlib.sha256(json.dumps(resolved(settings), sort_keys=True).encode()).hexdigest()


def _read_file(sources: _Sources, config: Path | None, environ: Mapping[str, str]) -> None:
    named = config or (Path(environ["PLAUDIT_CONFIG"]) if environ.get("PLAUDIT_CONFIG") else None)
    path = named or DEFAULT_CONFIG
    if named is None and not path.exists():
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        sources.problems.append(f"{path}: cannot be read ({error.strerror}); check --config and PLAUDIT_CONFIG")
        return
    except ValueError as error:
        sources.problems.append(f"{path}: is not TOML: {error}")
        return
    for keys, value in _leaves(content):
        sources.put(keys, value, str(path))


def _leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and values of a TOML document; a table that is itself a setting stays whole."""
    known = dict(fields())
    for key, value in table.items():
        path = (*above, key)
        if isinstance(value, dict) and ".".join(path) not in known:
            yield from _leaves(value, path)
        else:
            yield path, value


def _is_setting(name: str, value: str) -> bool:
    if not name.startswith(ENV_PREFIX):
        return False
    if any(name.startswith(other) if other.endswith("_") else name == other for other in ENV_OTHER):
        return False
    # A person's typo such as PLAUDIT_PORT=50051 must still be reported; a service link's port is a URL.
    link = _SERVICE_LINK.fullmatch(name)
    return not (link and ("SERVICE_" in name or value.startswith(("tcp://", "udp://")) or "_TCP_" in name))


def _is_compound(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (tuple, list, dict):
        return True
    return any(_is_compound(part) for part in typing.get_args(annotation)) if origin is not Literal else False


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint: the known path nearest to `name`, or the one whose last part is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not near:
        last = name.rpartition(".")[2]
        ends = {path.rpartition(".")[2]: path for path in known}
        near = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.6)]
    return f"; did you mean {near[0]!r}?" if near else "; `plaudit settings show` lists all keys"


_BOUNDS = {
    "greater_than_equal": ("ge", "too small; the smallest is"),
    "less_than_equal": ("le", "too large; the largest is"),
}


def _words(problem: Any, sources: _Sources) -> str:
    """One problem: where the value came from, the key, what is wrong, the value, and what would do."""
    path = tuple(problem["loc"])
    name = ".".join(_quoted(str(part)) if "/" in str(part) else str(part) for part in path)
    origin, kind = sources.origin(path), problem["type"]
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{origin}: {name}={problem['input']!r} is {words} {problem['ctx'][bound]}"
    if kind == "value_error":
        return f"{origin}: {name}: {problem['ctx']['error']}".replace(": : ", ": ")
    if kind == "extra_forbidden":
        section = ".".join(str(part) for part in path[2:]) if path[0] == "channels" else name
        known = {key: None for key, _ in fields(ChannelSettings)} if path[0] == "channels" else dict(fields())
        return f"{origin}: unknown key {name}{_nearest(section, known)}"
    secret = "key" in name or name == "store.url"
    shown = "" if secret else f"; it is {problem.get('input')!r}"
    return f"{origin}: {name}: {problem['msg']}{shown}"
