"""What both of TRL's sides (trl_ppo.py, trl_reward.py) are set up with, in an environment that has no plaudit."""

from __future__ import annotations

import importlib.metadata
from typing import Any

PACKAGES = ("trl", "torch", "transformers", "peft", "accelerate")
# Adapters as ours are.
ADAPTERS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
# Nothing but the training: no files, no reports, no saving of memory that costs time.
PLAIN: dict[str, Any] = {
    "gradient_checkpointing": False,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}


def versions() -> dict[str, str]:
    """Of what the peer's figures depend on."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
