"""Options that every command shares, and the settings they lead to.

Enters: --config, --set and --data-dir. Leaves: Settings. Imports no pydantic before a command needs its settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from plaudit.settings import Settings
    from plaudit.types import Channel

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML); plaudit.toml if there is one.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as serve.port=50051; repeats.")
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory shared by the processes of one machine.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(config: Path | None, assign: list[str] | None, data_dir: Path | None) -> Settings:
    """Settings in force; --data-dir is the last word on data_dir."""
    from plaudit.settings import load_settings
    from plaudit.telemetry import configure

    overrides = list(assign or [])
    if data_dir is not None:
        overrides.append(f"data_dir={data_dir}")
    settings = load_settings(config, overrides)
    # Standard output is the command's own: whatever is logged goes to standard error.
    configure(settings.log_format, settings.log_level)
    return settings


def load_used(config: Path | None, assign: list[str] | None, data_dir: Path | None) -> Settings:
    """As `load`, for a command that reads what is there: a mistyped directory is said, not made."""
    settings = load(config, assign, data_dir)
    settings.check_has_run()
    return settings


def channel_of(text: str) -> Channel:
    """The channel that an argument names; wrong usage for anything else."""
    from plaudit.types import Channel

    try:
        return Channel.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
