"""Makes a release of an adapter that was trained elsewhere, proved as any other.

Enters: a channel and a folder in PEFT's format. Leaves: a gated release, whose decision says that an operator brought
it and no gate judged it; it serves once somebody promotes it. Steps: 1 read the folder; 2 sample it on the engine;
3 let PEFT itself, from the folder as it is, say the log-probs of these completions; 4 prove that the engine gives the
same; 5 register and decide. What fails leaves nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from plaudit.decoding import channel_sampling, policy_temperature
from plaudit.domain import DomainPlugin
from plaudit.engine import adapter_files, adapters, foreign
from plaudit.engine.base import Base
from plaudit.engine.frozen import exact
from plaudit.engine.protocol import UNREGISTERED, Engine, ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import BadArtifact, InvalidField, RequestRefused, UnknownDomain, WrongAction
from plaudit.learner.measure import PROOF_PROBES, PROOF_PROMPTS
from plaudit.learner.recover import IMPORTED
from plaudit.learner.steps.register import adapter_of, versions
from plaudit.plugins import load_plugins
from plaudit.policy.rollout import TrainPrompt, sample
from plaudit.release.artifacts import file_digest
from plaudit.release.decision import Check, Decision
from plaudit.release.manifest import ADAPTER_WEIGHTS, Manifest, Probe
from plaudit.release.moves import ReleaseRow
from plaudit.release.registry import Registry
from plaudit.serving.proof import EXACT_GREATEST, FROM_BASE_MEAN, Proof, Tolerance, prove
from plaudit.settings import Settings
from plaudit.types import Action, Channel, Message, Request

_SEED = 1
_PROOF_TOKENS = 32
_NAME = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """The release, and what the proof measured (nats)."""

    row: ReleaseRow
    proof: Proof


def adopt(
    settings: Settings, channel: Channel, folder: Path, *, actor: str, reason: str = "", sha256: str = ""
) -> Adopted:
    """Register the adapter in `folder`; raises BadArtifact or ProofFailed with what is wrong with it.

    sha256: what adapter_model.safetensors must be; empty if nobody says.
    """
    settings = settings.for_channel(channel)
    weights = folder / adapter_files.WEIGHTS
    if sha256 and weights.is_file() and file_digest(weights) != sha256.lower():
        raise BadArtifact(
            f"{weights} has SHA-256 {file_digest(weights)}, not {sha256}: fetch it again",
            digest=file_digest(weights),
            expected=sha256,
        )
    plugins = load_plugins(settings.plugins.allow, budget_seconds=settings.plugins.budget_seconds)
    if channel.domain not in plugins:
        raise UnknownDomain(f"no plugin serves the domain {channel.domain!r} here", domain=channel.domain)
    plugin = plugins[channel.domain]
    if plugin.declaration.action is not Action.COMPLETION:
        raise WrongAction(f"{channel.domain} is a domain of choices; adapters are imported for completions")
    base = Base.of(settings)
    config, state = foreign.read(folder, base, settings.model)  # 1
    sampling = channel_sampling(plugin, settings.policy)
    temperature = policy_temperature(plugin, settings.policy)
    engine = TorchEngine(base, settings.engine, settings.model)
    with contextlib.closing(engine), tempfile.TemporaryDirectory(prefix="plaudit-import-") as work:
        artifacts = Path(work) / "release"
        adapter_files.write(artifacts / "policy", config, state)
        digest = file_digest(artifacts / ADAPTER_WEIGHTS)
        key, base_key = ReleaseKey(str(channel), UNREGISTERED, digest), ReleaseKey(str(channel), 0, "")
        engine.stage(base_key, None, temperature=temperature)
        engine.stage(key, artifacts / "policy", temperature=temperature)
        prompts = _prompts(plugin, engine)
        made = sample(engine, prompts, key, sampling, samples=1, seed=_SEED)  # 2
        asked = [(each.prompt.encoded.tokens, each.generated.tokens[:_PROOF_TOKENS]) for each in made]
        manifest = Manifest(
            channel=channel,
            parent=0,
            base_digest=base.digest,
            base_dtype=str(base.dtype).removeprefix("torch."),
            temperature=temperature,
            adapter=adapter_of(artifacts),
            settings={
                "imported": {
                    "weights_sha256": file_digest(weights),
                    "config_sha256": file_digest(folder / adapter_files.CONFIG),
                }
            },
            versions=versions(plugin.declaration),
            probes=tuple(_by_peft(base, folder, asked, temperature)),  # 3
        )
        tolerance = Tolerance.of("torch", engine.base_dtype)
        proof = prove(engine, key, base_key, manifest, tolerance=tolerance)  # 4
        with Registry(settings.store_url, settings.registry_root) as registry:  # 5
            registry.ensure_channel(channel, base.digest, temperature)
            row = registry.register(manifest, artifacts)
            row = registry.decide(channel, row.version, _decision(proof, actor, reason))
    return Adopted(row=row, proof=proof)


def _prompts(plugin: DomainPlugin, engine: Engine) -> list[TrainPrompt]:
    """Prompts that nobody asked, as those of the proof of any release."""
    found = []
    for text in PROOF_PROMPTS[:PROOF_PROBES]:
        with contextlib.suppress(RequestRefused):
            rendered = plugin.render(Request(messages=(Message("user", text),)))
            found.append(TrainPrompt(rendered=rendered, encoded=engine.encode(rendered.messages)))
    if not found:
        raise InvalidField("the domain refuses every prompt of the served-policy proof; no adapter can be proved in it")
    return found


def _by_peft(
    base: Base, folder: Path, asked: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], temperature: float
) -> Iterator[Probe]:
    """Log-probs of completions by PEFT and the model's own plain pass, from the folder as it is."""
    with exact(base), _loaded(base, folder), adapters.active(base, _NAME), torch.no_grad():
        for prompt, completion in asked:
            ids = torch.tensor([[*prompt, *completion]], device=base.device)  # (1, T)
            logits = base.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()  # (C, V)
            logprobs = torch.log_softmax(logits / temperature, dim=-1)
            wanted = ids[0, len(prompt) :, None]
            yield Probe(
                prompt_tokens=prompt,
                completion_tokens=completion,
                logprobs=tuple(logprobs.gather(1, wanted)[:, 0].tolist()),
            )


@contextlib.contextmanager
def _loaded(base: Base, folder: Path) -> Iterator[None]:
    """The adapter on the base for a block, as PEFT reads it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that transformers calls deprecated
            base.peft = PeftModel.from_pretrained(base.model, str(folder), adapter_name=_NAME)
    except Exception as error:  # PEFT raises what it likes for what it does not understand
        raise BadArtifact(f"PEFT itself cannot load the adapter in {folder} ({type(error).__name__})") from error
    for parameter in adapters.parameters(base, _NAME):
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        adapters.remove(base, _NAME)


def _decision(proof: Proof, actor: str, reason: str) -> Decision:
    why = f"brought by {actor}; no gate judged it" + (f": {reason}" if reason else "")
    checks = (
        Check(IMPORTED, True, 1.0, 1.0, note=why),
        Check("proof_difference", True, proof.greatest, EXACT_GREATEST, note="greatest, from PEFT's own log-probs"),
        Check("proof_from_base", True, proof.from_base, FROM_BASE_MEAN, note="mean difference from the base"),
    )
    return Decision(True, checks, dt.datetime.now(dt.UTC))
