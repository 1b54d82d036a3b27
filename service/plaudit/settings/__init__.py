"""Settings of every process: file < environment < flags.

A file is TOML (`plaudit.toml`, or what PLAUDIT_CONFIG or --config names). Environment variables are
`PLAUDIT_` + path with double underscores (`PLAUDIT_SERVE__PORT=50051`). Flags are `--set serve.port=50051`.
Lists and tables are JSON in the environment and in flags (`--set 'engine.widths=[4, 16]'`). An unknown key
anywhere is an error that names the nearest known one; all problems are reported at once. Secrets never leave
this package in clear: `resolved` masks them and `digest` does not depend on them.

Each section has the module of its name: `policy.lr` stands in `policy.py`. `root.py` puts them together, `loading.py`
reads them, `text.py` writes them as TOML and as the table of docs/settings.md.
"""

from plaudit.settings.access import AccessSettings, LimitSettings, TlsSettings, TokenSettings
from plaudit.settings.channels import ChannelSettings
from plaudit.settings.decision import DecisionSettings
from plaudit.settings.engine import EngineSettings, VllmSettings
from plaudit.settings.gate import GateSettings
from plaudit.settings.join import JoinSettings
from plaudit.settings.learn import ChannelLearnSettings, LearnSettings
from plaudit.settings.loading import DEFAULT_CONFIG, ENV_OTHER, ENV_PREFIX, load_settings
from plaudit.settings.log import KafkaSettings, LogSettings, OutboxSettings
from plaudit.settings.model import ModelSettings
from plaudit.settings.plugins import PluginSettings
from plaudit.settings.policy import PolicySettings
from plaudit.settings.privacy import ChannelPrivacySettings, PrivacySettings
from plaudit.settings.reward import RewardSettings
from plaudit.settings.root import ADDRESS_FILE, STORE_FILE, Settings, digest, fields, resolved
from plaudit.settings.section import Section
from plaudit.settings.serve import ChannelServeSettings, ServeSettings
from plaudit.settings.store import StoreSettings

__all__ = [
    "ADDRESS_FILE",
    "DEFAULT_CONFIG",
    "ENV_OTHER",
    "ENV_PREFIX",
    "STORE_FILE",
    "AccessSettings",
    "ChannelLearnSettings",
    "ChannelPrivacySettings",
    "ChannelServeSettings",
    "ChannelSettings",
    "DecisionSettings",
    "EngineSettings",
    "GateSettings",
    "JoinSettings",
    "KafkaSettings",
    "LearnSettings",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "OutboxSettings",
    "PluginSettings",
    "PolicySettings",
    "PrivacySettings",
    "RewardSettings",
    "Section",
    "ServeSettings",
    "Settings",
    "StoreSettings",
    "TlsSettings",
    "TokenSettings",
    "VllmSettings",
    "digest",
    "fields",
    "load_settings",
    "resolved",
]
