"""What `plaudit doctor` says about vLLM servers (docs/vllm.md).

Enters: settings. Leaves: a finding per server. Loads an adapter of its own into each, and unloads it again.
"""

from __future__ import annotations

from collections.abc import Iterator

from plaudit.doctor.findings import Finding
from plaudit.errors import EngineUnavailable
from plaudit.settings import Settings

CHECK = "vllm"


def servers(settings: Settings) -> Iterator[Finding]:
    """Whether each server answers, runs the base, takes adapters while it runs, and gives the log-probs that count."""
    from plaudit.engine.vllm.trial import try_servers

    rank = settings.model.adapter_rank
    for address, error in try_servers(settings).items():
        if error is None:
            words = f"{address} runs the base, takes adapters of rank {rank} and gives log-probs of what is drawn"
            yield Finding(CHECK, "good", words)
        elif isinstance(error, EngineUnavailable):
            yield Finding(
                CHECK, "bad", error.message, "start it, or correct engine.vllm.servers; its own log says more"
            )
        else:
            remedy = "do what the message says (docs/vllm.md has the flags), and see the server's own log"
            yield Finding(CHECK, "bad", error.message, remedy)
