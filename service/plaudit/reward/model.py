"""The reward model: a LoRA adapter on the shared base and K linear heads.

Enters: completions (prompt tokens, shown tokens). Leaves: scores by head, and the bounded number that PPO receives.
Scores are comparable only within a prompt, so whatever leaves towards the policy or a report is centred on
references first. The base's weights are never touched; without an adapter the heads read the base's own states.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import layer_norm

from plaudit.engine import adapter_files, adapters
from plaudit.engine.base import Base
from plaudit.engine.ranks import Ranks
from plaudit.errors import BadArtifact
from plaudit.reward.batch import Shared, Treatment
from plaudit.reward.completion import Completion
from plaudit.reward.trunk import KeptFeatures, TrunkCache
from plaudit.settings import ModelSettings, RewardSettings

HEADS_FILE = "heads.safetensors"
CARD_FILE = "reward.json"
ADAPTER_FOLDER = "adapter"
FORMAT = 1
# A head whose references all score alike has no spread; dividing by this keeps its centred scores finite.
LEAST_SPREAD = 1e-6


def trunk_cache(
    base: Base, settings: RewardSettings, kept: KeptFeatures | None = None, ranks: Ranks | None = None
) -> TrunkCache:
    """A cache for reward models of these settings, empty but for what is `kept`; several models share one.

    `ranks` share out the passes of the models that use it.
    """
    return TrunkCache(base, *trunk_layers(base, settings), kept, ranks)


def trunk_layers(base: Base, settings: RewardSettings) -> tuple[int, int]:
    """The layer whose input is kept, and the one below which heads read.

    Without `layer` heads read two thirds of the way up: the last layers turn states into the next token, and what a
    text is like can be read better below them (docs/adr/0013).
    """
    stop = min(settings.layer or round(base.num_layers * 2 / 3), base.num_layers)
    return max(0, stop - settings.adapter_layers), stop


class RewardModel:
    """Scores completions. `scales` (K,) are the heads' pooled within-prompt spreads, `temperature` the calibration's.

    Several may live on one base, each under its own `name`; `close` takes the adapter off again.
    """

    def __init__(
        self,
        base: Base,
        settings: RewardSettings,
        model_settings: ModelSettings,
        *,
        name: str = "reward",
        seed: int = 0,
        cache: TrunkCache | None = None,
    ) -> None:
        self.base = base
        self.settings = settings
        self.name = name
        self.adapter: str | None = name if settings.adapter else None
        self.cache = trunk_cache(base, settings) if cache is None else cache
        if self.adapter is not None:
            adapters.inject(
                base,
                self.adapter,
                layers=settings.adapter_layers,
                rank=model_settings.adapter_rank,
                alpha=model_settings.adapter_alpha,
                seed=seed,
                stop=self.cache.stop,
            )
        size = self.feature_size
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(settings.heads, size, generator=generator) / (size + 1) ** 0.5
        self.weight = weight.to(base.device).requires_grad_(True)
        self.bias = torch.zeros(settings.heads, device=base.device, requires_grad=True)
        self.shared = Shared.start(base.device)
        self.scales = torch.ones(settings.heads, device=base.device)
        self.temperature = 1.0
        self.treatment = Treatment.CONTRAST
        self.facts: dict[str, Any] = {}
        # How long the fit took, by stage; not saved, as a replay must give the same files.
        self.seconds: dict[str, float] = {}
        self._reference_scores: dict[Completion, Tensor] = {}
        self._inside = False

    @property
    def feature_size(self) -> int:
        """2H: the state at EOS and the mean over the response."""
        return 2 * self.base.hidden_size

    def adapter_parameters(self) -> list[torch.nn.Parameter]:
        """Weights of the adapter; none without one."""
        return adapters.parameters(self.base, self.adapter) if self.adapter is not None else []

    def head_parameters(self) -> list[Tensor]:
        """Heads, tie weight, thumbs' scale and intercept."""
        return [self.weight, self.bias, *self.shared.all]

    @contextlib.contextmanager
    def switched_on(self) -> Iterator[None]:
        """The adapter in force for a block; the bare base without one. Blocks may be nested.

        A backward pass belongs inside: outside, the adapter's weights take no gradient.
        """
        if self._inside:
            yield
            return
        with adapters.active(self.base, self.adapter):
            self._inside = True
            try:
                yield
            finally:
                self._inside = False

    # Scores -------------------------------------------------------------------------------------

    def _trunk(self, cache: TrunkCache | None) -> TrunkCache:
        """The caller's cache, which must hold the same layers, or the model's own."""
        if cache is None:
            return self.cache
        held, own = (cache.start, cache.stop), (self.cache.start, self.cache.stop)
        assert held == own, f"a cache of layers {held} for a reward model of layers {own}"
        return cache

    def features(self, completions: Sequence[Completion], cache: TrunkCache | None = None) -> Tensor:
        """Layernorm of the state at EOS beside that of the mean over the shown tokens: (N, 2H), fp32.

        An empty response takes the state at EOS for both. With gradient to the adapter if autograd is on.
        """
        if self.adapter is None:
            return self.plain_features(completions, cache)
        if not completions:
            return torch.zeros(0, self.feature_size, device=self.base.device)
        with self.switched_on():
            last, mean = self._trunk(cache).pooled(completions, self.adapter)
        return self._normed(last, mean)

    def plain_features(self, completions: Sequence[Completion], cache: TrunkCache | None = None) -> Tensor:
        """As `features`, of the bare base; each completion's are computed once and kept."""
        if not completions:
            return torch.zeros(0, self.feature_size, device=self.base.device)
        last, mean = self._trunk(cache).plain(completions)
        return self._normed(last, mean).to(self.base.device)

    def _normed(self, last: Tensor, mean: Tensor) -> Tensor:
        width = (self.base.hidden_size,)
        return torch.cat([layer_norm(last, width), layer_norm(mean, width)], -1)

    def collect(self) -> None:
        """Let a loss's gradient reach the adapter through the passes of all ranks; asked behind its backward pass."""
        if self.adapter is not None:
            self.cache.ranks.backward(self.adapter)

    @torch.no_grad()
    def states(self, completions: Sequence[Completion], cache: TrunkCache | None = None) -> list[Tensor]:
        """States (S + 1, H) of the shown tokens and the EOS under the adapter, detached."""
        with self.switched_on():
            found = self._trunk(cache).states(completions)
        return [found[each] for each in completions]

    def score(self, features: Tensor) -> Tensor:
        """Scores (N, K) of features (N, 2H)."""
        scores: Tensor = features @ self.weight.T + self.bias
        return scores

    @torch.no_grad()
    def scores(self, completions: Sequence[Completion], cache: TrunkCache | None = None) -> Tensor:
        """Scores (N, K) of completions, without gradient."""
        return self.score(self.features(completions, cache))

    def reference_centred(self, scores: Tensor, references: Tensor, mask: Tensor | None = None) -> Tensor:
        """(r_k - mean_j r_k(y_ref,j)) / sigma_k: (..., K) of scores (..., K) and references (..., J, K).

        mask (..., J) is True where a reference counts.
        """
        if mask is None:
            mean = references.mean(-2)
        else:
            filled = torch.where(mask.unsqueeze(-1), references, 0.0)
            mean = filled.sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)
        return (scores - mean) / self.scales

    def pessimistic(self, centred: Tensor) -> Tensor:
        """Mean over the heads less `uncertainty` times their spread (K - 1): (...) of (..., K).

        Coste et al. 2023, arXiv:2310.02743, section 3 (uncertainty-weighted), with the deviation for the variance.
        """
        if centred.shape[-1] < 2:
            return centred.mean(-1)
        return centred.mean(-1) - self.settings.uncertainty * centred.std(-1, correction=1)

    def shaped(self, pessimistic: Tensor) -> Tensor:
        """sigmoid(LCB / tau_R), within (0, 1). Fu et al. 2025, arXiv:2502.18770: a bounded, centred reward."""
        return torch.sigmoid(pessimistic / self.settings.temperature)

    @torch.no_grad()
    def outlook(
        self,
        completions: Sequence[Completion],
        references: Sequence[Sequence[Completion]],
        cache: TrunkCache | None = None,
    ) -> list[Tensor]:
        """Shaped score (S,) that each completion's shown tokens would get if they ended after each of them.

        The states come from one causal pass; where the text goes on there is no EOS, so this foretells a score and is
        none. `references` as for `judge`.
        """
        width = (self.base.hidden_size,)
        found = []
        for states, mean in zip(self.states(completions, cache), self._reference_means(references, cache), strict=True):
            own = states[:-1]
            running = own.cumsum(0) / torch.arange(1, len(own) + 1, device=own.device)[:, None]
            scores = self.score(torch.cat([layer_norm(own, width), layer_norm(running, width)], -1))
            found.append(self.shaped(self.pessimistic((scores - mean) / self.scales)).cpu())
        return found

    @torch.no_grad()
    def judge(
        self,
        completions: Sequence[Completion],
        references: Sequence[Sequence[Completion]],
        cache: TrunkCache | None = None,
    ) -> Tensor:
        """Pessimistic, reference-centred score (N,) of each completion; `references[i]` belong to completion i.

        `shaped` makes the reward of it. Scores of references are kept, as they come back at every iteration.
        """
        if not completions:
            return torch.zeros(0, device=self.base.device)
        scores = self.scores(completions, cache)
        means = torch.stack(self._reference_means(references, cache))
        return self.pessimistic((scores - means) / self.scales)

    @torch.no_grad()
    def shaped_among(self, requests: Iterable[Sequence[Completion]], most_tokens: int) -> Iterator[list[float]]:
        """Shaped score of each option of each request, centred on all options of that request.

        Requests are scored in parts of at most `most_tokens` tokens, or of one request; no more activations are held
        at once, and as few are kept.
        """
        for several in _parts(requests, most_tokens):
            flat = [option for options in several for option in options]
            for own in torch.split(self.scores(flat), [len(options) for options in several]):
                yield self.shaped(self.pessimistic(self.reference_centred(own, own))).tolist()
            self.cache.forget(flat)
            self.cache.clear(most_tokens)

    def _reference_means(
        self, references: Sequence[Sequence[Completion]], cache: TrunkCache | None = None
    ) -> list[Tensor]:
        """Mean score (K,) of each list of references; 0 for an empty one."""
        fresh = list({each: None for several in references for each in several if each not in self._reference_scores})
        self._reference_scores.update(zip(fresh, self.scores(fresh, cache), strict=True))
        none = torch.zeros_like(self.scales)
        return [
            torch.stack([self._reference_scores[each] for each in several]).mean(0) if several else none
            for several in references
        ]

    @torch.no_grad()
    def measure_scales(self, bank: Mapping[str, Sequence[Completion]], cache: TrunkCache | None = None) -> None:
        """Set `scales` to each head's within-prompt spread over base samples, pooled over the prompts of the bank.

        sigma_k^2 = mean_x sum_j (r_k(x, y_j) - mean_j)^2 / (J - 1): never one prompt's own. Prompts with fewer than
        two samples say nothing; without any the scales stay 1.
        """
        by_prompt: defaultdict[tuple[int, ...], list[Completion]] = defaultdict(list)
        for _, samples in sorted(bank.items()):
            for each in samples:
                by_prompt[each.prompt].append(each)
        prompts = [samples for samples in by_prompt.values() if len(samples) >= 2]
        if not prompts:
            return
        flat = list(dict.fromkeys(each for samples in prompts for each in samples))
        scores = dict(zip(flat, self.scores(flat, cache), strict=True))
        variances = [torch.stack([scores[each] for each in samples]).var(0, correction=1) for samples in prompts]
        self.scales = torch.stack(variances).mean(0).sqrt().clamp(min=LEAST_SPREAD)
        self._reference_scores.update(scores)

    def freeze(self) -> None:
        """End training: heads take no more gradient, and what was remembered of references is forgotten."""
        for parameter in self.head_parameters():
            parameter.requires_grad_(False)
        for parameter in [*self.adapter_parameters(), *self.head_parameters()]:
            parameter.grad = None
        self._reference_scores.clear()

    def close(self) -> None:
        """Take the adapter off the base; the model is of no use afterwards."""
        if self.adapter is not None:
            adapters.remove(self.base, self.adapter)
            self.adapter = None

    # Files --------------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Write adapter (PEFT's format), heads and card; safetensors and JSON only."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.adapter is not None:
            adapters.save(self.base, self.adapter, directory / ADAPTER_FOLDER)
        tensors = {"weight": self.weight, "bias": self.bias, "scales": self.scales}
        tensors |= dict(zip(("log_nu", "log_kappa", "intercept"), self.shared.all, strict=True))
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, directory / HEADS_FILE)
        card = {
            "format": FORMAT,
            "base_digest": self.base.digest,
            "layers": [self.cache.start, self.cache.stop],
            "adapter": self.adapter is not None,
            "settings": self.settings.model_dump(mode="json"),
            "treatment": self.treatment.value,
            "temperature": self.temperature,
            "nu": self.shared.log_nu.exp().item(),
            "kappa": self.shared.log_kappa.exp().item(),
            "scales": self.scales.tolist(),
            "facts": self.facts,
            "digests": {path: _digest(directory / path) for path in _files(directory, self.adapter is not None)},
        }
        (directory / CARD_FILE).write_text(json.dumps(card, indent=1, sort_keys=True))

    @classmethod
    def load(cls, base: Base, directory: Path, *, name: str = "reward", cache: TrunkCache | None = None) -> RewardModel:
        """Read a saved model, frozen; raises BadArtifact if it is damaged or made for another base."""
        card, heads = _read(directory, base)
        settings = RewardSettings.model_validate(card["settings"])
        start, stop = card["layers"]
        if cache is None or (cache.start, cache.stop) != (start, stop):
            cache = TrunkCache(base, start, stop)
        # The adapter comes from its file: build the rest without one, then load it under the name.
        bare = settings.model_copy(update={"adapter": False})
        model = cls(base, bare, ModelSettings(), name=name, cache=cache)
        expected = {"weight": model.weight, "bias": model.bias, "scales": model.scales}
        expected |= dict(zip(("log_nu", "log_kappa", "intercept"), model.shared.all, strict=True))
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in heads.items()}:
            raise BadArtifact(f"the heads in {directory.name!r} do not fit the base or their own settings")
        for key, tensor in expected.items():
            tensor.data = heads[key].to(base.device)
        model.settings = settings
        if card["adapter"]:
            adapters.load(base, name, directory / ADAPTER_FOLDER)
            model.adapter = name
        model.treatment = Treatment(card["treatment"])
        model.temperature = float(card["temperature"])
        model.facts = dict(card["facts"])
        model.freeze()
        return model


def _parts(requests: Iterable[Sequence[Completion]], most_tokens: int) -> Iterator[list[Sequence[Completion]]]:
    """Consecutive requests of at most `most_tokens` tokens in all, or of one request."""
    held: list[Sequence[Completion]] = []
    tokens = 0
    for options in requests:
        own = sum(len(option.shown) + 1 for option in options) + max(
            (len(option.prompt) for option in options), default=0
        )
        if held and tokens + own > most_tokens:
            yield held
            held, tokens = [], 0
        held.append(options)
        tokens += own
    if held:
        yield held


def _files(directory: Path, adapter: bool) -> Iterable[str]:
    names = [HEADS_FILE]
    if adapter:
        names += [f"{ADAPTER_FOLDER}/{name}" for name in (adapter_files.CONFIG, adapter_files.WEIGHTS)]
    return names


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(directory: Path, base: Base) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and heads, checked against their digests and the base."""
    again = "fetch the release again or train it anew"
    try:
        card = json.loads((directory / CARD_FILE).read_text())
        if card["format"] != FORMAT:
            raise BadArtifact(f"the reward model in {directory.name!r} has format {card['format']}, not {FORMAT}")
        if card["base_digest"] != base.digest:
            raise BadArtifact(
                f"the reward model in {directory.name!r} was made for base {card['base_digest'][:12]}, "
                f"not {base.digest[:12]}"
            )
        for path in _files(directory, card["adapter"]):
            if _digest(directory / path) != card["digests"][path]:
                raise BadArtifact(f"{path} of the reward model in {directory.name!r} is damaged; {again}")
        RewardSettings.model_validate(card["settings"])
        Treatment(card["treatment"])
        start, stop = (int(layer) for layer in card["layers"])
        if not (0 <= start <= stop <= base.num_layers and float(card["temperature"]) > 0):
            raise ValueError(f"layers {card['layers']}, temperature {card['temperature']}")
        dict(card["facts"])
        return card, load_file(directory / HEADS_FILE)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise BadArtifact(f"the reward model in {directory.name!r} cannot be read ({error}); {again}") from error
