"""Step 5: the candidate's artifacts and manifest are written once, and its version is taken."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

import peft
import torch
import transformers

import plaudit
from plaudit.domain import Declaration
from plaudit.engine.adapter_files import CONFIG
from plaudit.learner.actions.protocol import Fitted, Frozen, Measured
from plaudit.learner.context import Turn
from plaudit.learner.since import in_force
from plaudit.policy.optimizer import Optimised
from plaudit.release.artifacts import file_digest, list_artifacts
from plaudit.release.manifest import ADAPTER_WEIGHTS, Adapter, Manifest, Offsets, folder_digest
from plaudit.release.moves import ReleaseRow
from plaudit.release.registry import PROBE_ANSWERS


def register(turn: Turn, frozen: Frozen, fitted: Fitted, optimised: Optimised, measured: Measured) -> ReleaseRow:
    """Register the candidate as a release in state `trained`."""
    turn.begin(5, "register")
    folder = turn.folder / "release"
    shutil.copytree(optimised.adapter, folder / "policy")
    fitted.reward.save(folder / "reward")
    fitted.judge.save(folder / "gate_reward")
    (folder / "reward_report.json").write_text(fitted.report.to_json())
    settings, data, declaration = turn.settings, frozen.data, turn.plugin.declaration
    manifest = Manifest(
        channel=turn.channel,
        parent=turn.state.live,
        generation=turn.state.generation,
        base_digest=turn.base.digest,
        base_dtype=str(turn.base.dtype).removeprefix("torch."),
        temperature=turn.sampling.temperature,
        adapter=adapter_of(folder),
        reward_model=folder_digest(list_artifacts(folder), "reward"),
        as_of=data.as_of,
        newest_feedback_at=max((row.accepted_at for row in data.rows), default=None),
        offsets=tuple(
            Offsets(topic=str(o.topic), partition=o.partition, first=o.first, next=o.next, topic_id=o.topic_id or None)
            for o in data.offsets
        ),
        evidence_digest=data.digest,
        evidence_counts=data.counts,
        settings=in_force(settings)
        | {
            "engine": turn.learner.rollouts.model_dump(mode="json"),
            "iterations": [_finite(each) for each in optimised.statistics],
            "iterates": [_finite(each) for each in optimised.iterates],
            "chosen": optimised.chosen,
        },
        seeds={"turn": turn.seed},
        versions=versions(declaration) | _shared(turn.learner.ranks.size),
        probes=measured.proof,
        kl=measured.kl,
    )
    beside = {}
    if measured.failed:
        answers = [dataclasses.asdict(each) for each in measured.failed]
        beside[PROBE_ANSWERS] = json.dumps(answers, ensure_ascii=False, indent=2)
    acts = {(row.interaction_id, row.feedback_id) for row in data.rows}
    return turn.learner.registry.register(manifest, folder, guard=turn.guard, beside=beside, acts=acts)


def adapter_of(folder: Path) -> Adapter:
    """The adapter below a release's folder as it is: one that goes on from another keeps that one's shape."""
    config = json.loads((folder / "policy" / CONFIG).read_text(encoding="utf-8"))
    return Adapter(
        digest=file_digest(folder / ADAPTER_WEIGHTS),
        rank=config["r"],
        alpha=config["lora_alpha"],
        layers=len(config["layers_to_transform"]),
    )


def versions(declaration: Declaration) -> dict[str, str]:
    """Versions of all that decides an adapter's bits, and the instructions that this processor computes with."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "plaudit": plaudit.__version__,
        f"plugin:{declaration.name}": declaration.version,
        f"policy:{declaration.name}": declaration.policy_version,
    }


def _shared(processes: int) -> dict[str, str]:
    """Sums that several processes share out are rounded in another order."""
    return {"processes": str(processes)} if processes > 1 else {}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}
