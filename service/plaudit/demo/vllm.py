"""A vLLM server for one machine: how `plaudit demo --vllm` and the tests start one.

In: the program, a model's folder, a port. Out: its command line and its environment. docs/vllm.md says what each flag
is for.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


def command(program: Path, model: Path, port: int, *, context_length: int, rank: int = 8) -> list[str]:
    """The command line of a small server on loopback."""
    flags = {
        "--host": "127.0.0.1",
        "--port": port,
        "--dtype": "float32",
        "--max-model-len": context_length,
        "--max-lora-rank": rank,
        # More than this package ever holds, so that the last place stays empty: on processors, vLLM 0.32 computes the
        # base with what lies there if an adapter is in the same batch.
        "--max-loras": 16,
        "--max-cpu-loras": 16,
        "--logprobs-mode": "processed_logprobs",
        "--generation-config": "vllm",
    }
    pairs = [str(part) for pair in flags.items() for part in pair]
    # vLLM 0.32 on processors dies of a prompt in pieces whose request has a seed.
    whole = ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(8192, context_length))]
    return [str(program), "serve", str(model), "--enforce-eager", "--enable-lora", *pairs, *whole]


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environ(threads: int) -> Mapping[str, str]:
    """Its environment: nothing of ours that its own libraries would read."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {
        **kept,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        # Threads of one server on one core each would starve what else runs on the machine.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
