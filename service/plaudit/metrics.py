"""Every metric of every process, defined once.

What enters: measurements by the processes. What leaves: the text that Prometheus scrapes, and docs/metrics.md
(`python -m plaudit.metrics > docs/metrics.md`; a test compares the two). A process makes one `Metrics` on a registry
of its own and passes it down; nothing here touches the global registry. Labels never hold ids, tenants' users or texts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from plaudit.addresses import address, bare_host
from plaudit.errors import Misconfigured
from plaudit.types import Channel

_REQUEST_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2.5)
_STEP_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900)
_FRESHNESS_SECONDS = (10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600, 86400)


class Description(NamedTuple):
    """A row of docs/metrics.md."""

    name: str
    kind: str
    labels: tuple[str, ...]
    process: str
    meaning: str


class Metrics:
    """The metrics of a process; each attribute is one of them.

    Every process defines all of them, so that one list documents all; those without measurements cost one line each.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.descriptions: list[Description] = []
        self._serving()
        self._engine()
        self._releases()
        self._join()
        self._learner()

    def _serving(self) -> None:
        self.requests = self._counter("serve", "requests", "Calls answered.", "service", "method", "code")
        self.request_seconds = self._histogram(
            "serve",
            "request_seconds",
            "Seconds from a call's arrival to its last byte.",
            _REQUEST_SECONDS,
            "service",
            "method",
        )
        self.requests_in_flight = self._gauge("serve", "requests_in_flight", "Calls being answered.")
        self.first_text_seconds = self._histogram(
            "serve", "first_text_seconds", "Seconds to the first text of a streamed completion.", _REQUEST_SECONDS
        )
        self.tokens = self._counter("serve", "tokens", "Tokens read (prompt) and generated (completion).", "kind")
        self.completions = self._counter(
            "serve", "completions", "Completions and options recorded.", "channel", "purpose", "valid"
        )
        self.feedback_accepted = self._counter(
            "serve", "feedback_accepted", "Pieces of feedback made durable.", "domain", "kind"
        )
        self.consent_withheld = self._counter(
            "serve",
            "consent_withheld",
            "Interactions that nothing may be learnt from (training), or whose texts are not kept (storage).",
            "channel",
            "withheld",
        )
        self.redactions = self._counter("serve", "redactions", "Pieces of personal data replaced.", "kind")
        self.feedback_refused = self._counter(
            "serve", "feedback_refused", "Pieces of feedback refused, in calls that were let in.", "reason"
        )
        self.plugin_failures = self._counter(
            "serve, join, learn",
            "plugin_failures",
            "Calls of a plugin that raised, took too long or returned what cannot be used.",
            "domain",
            "member",
            "why",
        )
        self.append_seconds = self._histogram(
            "serve", "append_seconds", "Seconds until a record is durable.", _REQUEST_SECONDS, "topic"
        )

        self.outbox_records = self._gauge("serve", "outbox_records", "Records in the outbox: Kafka has not taken them.")
        self.outbox_bytes = self._gauge("serve", "outbox_bytes", "Bytes of the outbox's file that are in use.")
        self.outbox_oldest_seconds = self._gauge(
            "serve", "outbox_oldest_seconds", "Age of the oldest record in the outbox; 0 if it is empty."
        )
        self.outbox_kept = self._counter("serve", "outbox_kept", "Records that went into the outbox.", "topic")
        self.outbox_drained = self._counter(
            "serve", "outbox_drained", "Records that went from the outbox to Kafka.", "topic"
        )

    def _engine(self) -> None:
        both = "serve, learn"
        self.engine_decoding = self._gauge(both, "engine_decoding", "Completions that decode.")
        self.engine_waiting = self._gauge(both, "engine_waiting", "Completions that wait for a slot.")
        self.engine_queue_seconds = self._histogram(
            both,
            "engine_queue_seconds",
            "Seconds until a completion begins to decode, its prompt's included.",
            _STEP_SECONDS,
        )
        self.engine_first_token_seconds = self._histogram(
            both, "engine_first_token_seconds", "Seconds until a completion has its first token.", _REQUEST_SECONDS
        )
        self.engine_token_seconds = self._histogram(
            both,
            "engine_token_seconds",
            "Seconds between two decode steps of a batch, in which each completion gets a token.",
            _TOKEN_SECONDS,
        )
        self.engine_rows = self._counter(
            both, "engine_rows", "Rows computed in decode steps: used are completions' tokens.", "state"
        )
        self.engine_prefixes = self._counter(
            both,
            "engine_prefixes",
            "Shared beginnings of prompts: cached, cached in the layers below all adapters, or computed.",
            "found",
        )
        self.engine_kv_bytes = self._gauge(both, "engine_kv_bytes", "Memory of keys and values that is held.")
        self.engine_kv_limit_bytes = self._gauge(
            both, "engine_kv_limit_bytes", "Memory of keys and values that is allowed (engine.kv_memory_mb)."
        )
        self.engine_slots = self._gauge(both, "engine_slots", "Adapter slots.")
        self.engine_slots_used = self._gauge(both, "engine_slots_used", "Adapter slots that hold an adapter.")
        self.engine_server_up = self._gauge(
            "serve", "engine_server_up", "1 if this vLLM server takes requests of this replica, else 0.", "server"
        )
        self.engine_server_adapters = self._gauge(
            "serve",
            "engine_server_adapters",
            "Adapters of releases that this vLLM server was proved with; 0 while it takes no requests.",
            "server",
        )

    def _releases(self) -> None:
        self.replica_release = self._gauge(
            "serve", "replica_release", "Version that this replica serves on a channel.", "channel"
        )
        self.replica_generation = self._gauge(
            "serve", "replica_generation", "Generation of the channel state that this replica follows.", "channel"
        )
        self.replica_behind = self._gauge(
            "serve", "replica_behind", "1 if this replica cannot serve the channel's live release.", "channel"
        )
        self.swaps = self._counter("serve", "swaps", "Changes of the release that this replica serves.", "channel")
        self.swap_seconds = self._histogram(
            "serve", "swap_seconds", "Seconds to fetch, stage, prove and activate a release.", _STEP_SECONDS
        )
        self.release_refusals = self._counter(
            "serve", "release_refusals", "Releases that this replica could not serve.", "channel", "reason"
        )
        self.follower_errors = self._counter("serve", "follower_errors", "Failed looks at the channel states.")
        self.staged_releases = self._gauge("serve", "staged_releases", "Releases staged in the engine.")
        self.freshness_seconds = self._histogram(
            "serve",
            "feedback_to_served_seconds",
            "Seconds from the acknowledgement of the newest feedback of a release to its first reply here.",
            _FRESHNESS_SECONDS,
            "channel",
        )
        self.release_info = self._gauge(
            "serve",
            "release_info",
            "1 for the version that this replica serves, with the first 12 digits of its digest.",
            "channel",
            "version",
            "digest",
        )

    def _join(self) -> None:
        self.join_records = self._counter("join", "join_records", "Records read by the join.", "topic")
        self.join_joined = self._counter(
            "join", "join_joined", "Pieces of feedback joined to their interaction.", "channel"
        )
        self.join_evidence = self._counter("join", "join_evidence", "Rows of evidence written.", "channel", "kind")
        self.join_rejected = self._counter("join", "join_rejected", "Records sent to plaudit.rejected.", "reason")
        self.join_expired = self._counter(
            "join", "join_expired_records", "Records that retention deleted before the join read them: lost.", "topic"
        )
        self.join_forgotten = self._counter(
            "join", "join_forgotten", "Records left out because retention or an erasure has deleted them.", "why"
        )
        self.privacy_deleted = self._counter(
            "join", "privacy_deleted", "What retention and erasures deleted: rows, log records, files.", "what"
        )
        self.erasures_waiting = self._gauge(
            "join", "erasures_waiting", "Erasures that are not done, or whose releases are not all out of service."
        )
        self.erasures_overdue = self._gauge(
            "join", "erasures_overdue", "Erasures of these that have taken longer than privacy.retrain_days allows."
        )
        self.join_waiting = self._gauge(
            "join", "join_waiting", "Pieces of feedback that wait for their interaction.", "channel"
        )
        self.join_waits = self._gauge(
            "join", "join_waits", "1 while the join waits, at its start or for the log or the store.", "why"
        )
        self.join_lag = self._gauge("join", "join_lag_records", "Records not yet read.", "topic", "partition")
        self.join_seconds = self._histogram(
            "join", "join_batch_seconds", "Seconds of one transaction of the join.", _STEP_SECONDS
        )

    def _learner(self) -> None:
        self.turns = self._counter("learn", "turns", "Turns of the learner, by outcome.", "channel", "outcome")
        self.turn_seconds = self._histogram(
            "learn", "turn_step_seconds", "Seconds of one step of a turn.", _STEP_SECONDS, "step"
        )
        self.turn_have = self._gauge(
            "learn", "turn_have", "What a channel's next turn has of what it needs.", "channel", "need"
        )
        self.turn_want = self._gauge(
            "learn", "turn_want", "What a channel's next turn needs; it waits while it has less.", "channel", "need"
        )
        self.reward_accuracy = self._gauge(
            "learn",
            "reward_accuracy",
            "Share of held-out comparisons that the reward model orders as people did.",
            "channel",
        )
        self.reward_calibration_error = self._gauge(
            "learn", "reward_calibration_error", "Expected calibration error of the reward model.", "channel"
        )
        self.policy_kl = self._gauge(
            "learn", "policy_kl_nats_per_sequence", "KL of the last candidate release to the base.", "channel"
        )
        self.kept = self._counter(
            "learn",
            "kept",
            "Features of texts and base answers that a turn took over from an earlier one (kept) or made (computed), "
            "and files of them that were passed over (damaged).",
            "channel",
            "what",
            "found",
        )
        self.gate_decisions = self._counter("learn", "gate_decisions", "Decisions of the gate.", "channel", "accepted")
        self.gate_check = self._gauge(
            "learn", "gate_check_value", "Value of each check of the last gate.", "channel", "check"
        )

        self.gate_bound = self._gauge(
            "learn", "gate_check_bound", "Bound of each check of the last gate.", "channel", "check"
        )
        self.gate_passed = self._gauge(
            "learn", "gate_check_passed", "1 for each check of the last gate that passed, else 0.", "channel", "check"
        )
        self.last_turn = self._gauge(
            "learn",
            "last_turn_seconds",
            "When the last turn with this outcome ended (seconds since 1970).",
            "channel",
            "outcome",
        )

    def _describe(self, name: str, kind: str, labels: tuple[str, ...], process: str, meaning: str) -> None:
        self.descriptions.append(Description(name, kind, labels, process, meaning))

    def _counter(self, process: str, name: str, meaning: str, *labels: str) -> Counter:
        self._describe(f"plaudit_{name}_total", "counter", labels, process, meaning)
        return Counter(f"plaudit_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, process: str, name: str, meaning: str, *labels: str) -> Gauge:
        self._describe(f"plaudit_{name}", "gauge", labels, process, meaning)
        return Gauge(f"plaudit_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, process: str, name: str, meaning: str, buckets: Iterable[float], *labels: str) -> Histogram:
        self._describe(f"plaudit_{name}", "histogram", labels, process, meaning)
        return Histogram(f"plaudit_{name}", meaning, labels, registry=self.registry, buckets=tuple(buckets))

    def set_release_info(self, channel: Channel, version: int, digest: str) -> None:
        """Names the version that serves a channel and forgets the one before."""
        set_only(self.release_info, {(str(channel), str(version), digest[:12]): 1}, among=(str(channel),))


def set_only(gauge: Gauge, values: Mapping[tuple[str, ...], float], *, among: tuple[str, ...] = ()) -> None:
    """Sets a gauge by its labels and forgets the others that begin with `among`: what is over is told no longer."""
    told = [tuple(sample.labels.values()) for metric in gauge.collect() for sample in metric.samples]
    for labels in told:
        if labels not in values and labels[: len(among)] == among:
            gauge.remove(*labels)
    for labels, value in values.items():
        gauge.labels(*labels).set(value)


def expose(metrics: Metrics, port: int, host: str = "127.0.0.1") -> None:
    """Serves the metrics over HTTP; port 0 serves none. Raises Misconfigured if the address cannot be had."""
    if not port:
        return
    try:
        start_http_server(port, addr=bare_host(host), registry=metrics.registry)
    except OSError as error:
        raise Misconfigured(
            f"the metrics cannot be served on {address(host, port)}: {error.strerror}; choose another metrics_port "
            "(0 serves none) or end the program that has it",
            setting="metrics_port",
        ) from error


def to_markdown(metrics: Metrics) -> str:
    """The contents of docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Generated by `python -m plaudit.metrics > docs/metrics.md`; do not edit. Seconds and records are base units;",
        "a histogram adds `_bucket`, `_sum` and `_count` to its name.",
        "",
        "| Metric | Kind | Labels | Process | Meaning |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(metrics.descriptions):
        labels = ", ".join(f"`{label}`" for label in row.labels) or "none"
        lines.append(f"| `{row.name}` | {row.kind} | {labels} | {row.process} | {row.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(to_markdown(Metrics(CollectorRegistry())))
