"""All settings, and what is in force for a channel."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from plaudit.errors import Misconfigured
from plaudit.settings.access import AccessSettings
from plaudit.settings.channels import ChannelSettings
from plaudit.settings.decision import DecisionSettings
from plaudit.settings.engine import EngineSettings
from plaudit.settings.gate import GateSettings
from plaudit.settings.join import JoinSettings
from plaudit.settings.learn import LearnSettings
from plaudit.settings.log import LogSettings
from plaudit.settings.model import ModelSettings
from plaudit.settings.plugins import PluginSettings
from plaudit.settings.policy import PolicySettings
from plaudit.settings.privacy import PrivacySettings
from plaudit.settings.reward import RewardSettings
from plaudit.settings.section import Section
from plaudit.settings.serve import ServeSettings
from plaudit.settings.store import StoreSettings
from plaudit.types import Channel

STORE_FILE = "evidence.sqlite"  # in the data directory, unless store.url names another database
ADDRESS_FILE = "serve.json"  # in the data directory: where a replica of this machine listens


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
    def _slices_are_sampled_elsewhere(self) -> Self:
        if self.model.shard and self.engine.kind != "vllm":
            raise ValueError(
                f"model.shard=true needs servers that sample and engine.kind is {self.engine.kind}: no process holds "
                "the whole base; set engine.kind=vllm, or unset model.shard"
            )
        if self.model.shard and self.engine.vllm.check_base:
            raise ValueError(
                "model.shard=true needs engine.vllm.check_base=false, as the check loads the whole base; the releases' "
                "own proofs tell whether the servers run it"
            )
        return self

    @model_validator(mode="after")
    def _channels_stand_as_a_whole(self) -> Self:
        for pattern in self.channels:
            if "/" not in pattern:
                shown, likely = quoted(pattern), quoted(f"{pattern}/*")
                raise ValueError(f"channels.{shown} names no channel; write domain/tenant, such as {likely}")
            try:
                self._with([pattern])
            except ValidationError as error:
                words = "; ".join(str(each["ctx"]["error"]) for each in error.errors(include_url=False))
                raise ValueError(f"channels.{quoted(pattern)}: {words}") from error
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
        return min((each.retention_days for each in self.privacies if each.retention_days), default=0.0)

    @property
    def privacies(self) -> list[PrivacySettings]:
        """The process's privacy settings and those of every pattern."""
        return [self.privacy, *(self._with([pattern]).privacy for pattern in self.channels)]

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


def quoted(pattern: str) -> str:
    """A channel's name or pattern as TOML and `--set` want it in a key."""
    return json.dumps(pattern, ensure_ascii=False)


def fields(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Path and annotation of every setting, in the order of declaration."""
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from fields(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


def resolved(settings: Settings) -> dict[str, Any]:
    """Settings in force as plain JSON types, with secrets masked."""
    dumped: dict[str, Any] = settings.model_dump(mode="json")
    return dumped


def digest(settings: Settings) -> str:
    """SHA-256, in hex, of the masked settings: equal for equal settings, whatever the secrets are."""
    return hashlib.sha256(json.dumps(resolved(settings), sort_keys=True).encode()).hexdigest()
