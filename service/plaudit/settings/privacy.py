"""`privacy.*`: what of people's data is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from plaudit.settings.section import Section


class ChannelPrivacySettings(Section):
    """What of people's data a channel keeps (docs/privacy.md)."""

    redact: tuple[Literal["email", "phone", "iban", "card", "ip", "secret"], ...] = ()
    """Kinds of personal data that placeholders replace in requests and feedback, before anything else reads them."""
    recognisers: tuple[str, ...] = ()
    """Installed recognisers of what has no shape, such as names, that are asked too (docs/privacy.md)."""
    store: bool = True
    """Keep the texts of requests that say nothing of consent."""
    train: bool = True
    """Learn from requests that say nothing of consent."""
    retention_days: float = Field(default=0.0, ge=0, le=36_500)
    """Days after which interactions, feedback and evidence are deleted; 0 keeps them for ever."""


class PrivacySettings(ChannelPrivacySettings):
    """What of people's data is kept, and how it ends."""

    sweep_seconds: float = Field(default=60.0, ge=0.01, le=86_400)
    """How often the join looks for what is older than retention_days."""
    retrain_days: float = Field(default=7.0, ge=0, le=3_650)
    """Days in which a release that learnt from somebody who was erased is replaced; then it is rolled back."""
    person_keys: bool = False
    """Seal what the log keeps of a person with a key of their own, kept in the store and destroyed by an erasure."""
    receipt_key: SecretStr = SecretStr("")
    """Key that signs receipts of erasures; empty makes one in the data directory."""
