"""`store.*`: the database and the registry's files."""

from __future__ import annotations

from pydantic import SecretStr

from plaudit.settings.section import Section


class StoreSettings(Section):
    """Evidence and registry."""

    url: SecretStr = SecretStr("")
    """SQLAlchemy URL of evidence and channel states; empty is evidence.sqlite in the data directory."""
    registry: str = ""
    """Where artifacts lie (an fsspec URL); empty is registry/ in the data directory."""
