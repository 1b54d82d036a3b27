"""`plaudit release estimate`: what releases of a channel of choices are worth by what people gave to drawn orders.

Enters: settings, a channel, versions. Leaves: estimates per release, or in words why there is none. Reads the evidence
store and the registry; changes nothing, and takes no lease.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from plaudit.deciding import costs_of
from plaudit.domain import DomainPlugin
from plaudit.engine.base import Base
from plaudit.engine.protocol import ReleaseKey
from plaudit.engine.torch_engine import TorchEngine
from plaudit.errors import UnknownDomain, WrongAction
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.off_policy import OffPolicyLog, Shows, reactions
from plaudit.plugins import load_plugins
from plaudit.release.estimate import Estimates, Shown, TooLittleOverlap, difference, estimate
from plaudit.release.intervals import Interval
from plaudit.release.registry import Registry
from plaudit.reward.model import RewardModel
from plaudit.settings import Settings
from plaudit.types import Action, Channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One release's value per interaction, or why nothing can be said.

    `gain`: its value less the base's, over the same interactions; None for the base and if one of them is unknown.
    """

    version: int
    shows: Shows
    estimates: Estimates | None = None
    gain: Interval | None = None
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Valued:
    """What was asked: reactions to drawn orders on gate prompts, of how many raters, and the values."""

    channel: Channel
    live: int
    reactions: int
    raters: int
    values: tuple[Value, ...]


def value(
    settings: Settings,
    channel: Channel,
    version: int | None = None,
    *,
    clip: float = math.inf,
    tell: Callable[[str], None] = lambda text: None,
) -> Valued:
    """Values of the base, of the live release, and of `version` if it is named; as they draw and as they serve.

    Raises UnknownDomain, UnknownChannel, UnknownRelease, or WrongAction for a channel of completions.
    """
    settings = settings.for_channel(channel)
    plugins = load_plugins(settings.plugins.allow, budget_seconds=settings.plugins.budget_seconds)
    if channel.domain not in plugins:
        raise UnknownDomain(f"no domain {channel.domain!r} is installed; `plaudit plugins list` shows those that are")
    plugin = plugins[channel.domain]
    if plugin.declaration.action is not Action.CHOICE:
        raise WrongAction(f"{channel} makes completions; only what was chosen among known options has a propensity")
    with (
        contextlib.closing(EvidenceStore(settings.store_url)) as store,
        contextlib.closing(Registry(settings.store_url, settings.registry_root)) as registry,
    ):
        return _Valuer(settings, channel, plugin, store, registry, clip, tell).value(version)


class _Valuer:
    def __init__(
        self,
        settings: Settings,
        channel: Channel,
        plugin: DomainPlugin,
        store: EvidenceStore,
        registry: Registry,
        clip: float,
        tell: Callable[[str], None],
    ) -> None:
        self._settings, self._channel, self._plugin = settings, channel, plugin
        self._registry, self._clip, self._tell = registry, clip, tell
        declared = plugin.declaration
        self._declared, self._costs = declared, costs_of(declared, settings.decision.costs)
        data = store.freeze(
            channel,
            registry.salt(channel),
            few_raters=declared.few_raters,
            policy_version=declared.policy_version,
        )
        self._reacted = reactions(data, declared, self._costs, most=settings.gate.estimate_interactions)

    def value(self, version: int | None) -> Valued:
        state = self._registry.state(self._channel)
        live = state.live if state is not None else 0
        versions = sorted({0, live, *(() if version is None else (version,))})
        for each in versions:
            self._registry.release(self._channel, each)  # raises for one that is not there, before the model is loaded
        return Valued(
            channel=self._channel,
            live=live,
            reactions=len(self._reacted),
            raters=len({each.who for each in self._reacted}),
            values=tuple(self._values(versions)) if self._reacted else (),
        )

    def _values(self, versions: list[int]) -> list[Value]:
        shown: dict[tuple[int, Shows], list[Shown]] = {}
        base = Base.of(self._settings)
        engine = TorchEngine(base, self._settings.engine, self._settings.model)
        with contextlib.closing(engine), tempfile.TemporaryDirectory() as folder:
            folders = {
                each: self._registry.fetch(self._channel, each, Path(folder) / str(each), base_digest=base.digest)
                for each in versions
                if each
            }
            with _reward_model(base, folders[max(folders)] / "reward" if folders else None) as model:
                log = OffPolicyLog(
                    self._reacted,
                    self._declared,
                    self._costs,
                    seed=0,
                    model=model,
                    most_tokens=self._settings.policy.trunk_tokens,
                )
            for version in versions:
                row = self._registry.release(self._channel, version)
                key = ReleaseKey(str(self._channel), version, row.digest)
                adapter = folders[version] / "policy" if version else None
                temperature = self._registry.manifest(self._channel, version).temperature
                engine.stage(key, adapter, temperature=temperature)
                scores = log.scores(engine, key, None, self._progress(version))
                engine.unstage(key)
                shown |= {(version, how): log.shown(scores, how) for how in Shows}
        return [self._one(version, how, shown) for version in versions for how in Shows]

    def _progress(self, version: int) -> Callable[[int, int], None]:
        return lambda done, all_: self._tell(f"version {version}: {done}/{all_} interactions")

    def _one(self, version: int, how: Shows, shown: dict[tuple[int, Shows], list[Shown]]) -> Value:
        weights, least = self._declared.place_weights, self._settings.gate.estimate_ess
        try:
            found = estimate(shown[version, how], place_weights=weights, clip=self._clip, min_ess=least)
        except TooLittleOverlap as error:
            return Value(version=version, shows=how, why_not=str(error))
        gain = None
        if version:
            with contextlib.suppress(TooLittleOverlap):
                gain = difference(
                    shown[version, how], shown[0, how], place_weights=weights, clip=self._clip, min_ess=least
                )
        return Value(version=version, shows=how, estimates=found, gain=gain)


@contextlib.contextmanager
def _reward_model(base: Base, folder: Path | None) -> Iterator[RewardModel | None]:
    """A release's reward model for the length of a block; it never saw what people gave on gate prompts."""
    if folder is None or not folder.is_dir():
        yield None
        return
    model = RewardModel.load(base, folder)
    try:
        yield model
    finally:
        model.close()
