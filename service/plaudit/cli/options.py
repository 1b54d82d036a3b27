"""Options that commands share, the settings they lead to, and results as JSON.

Enters: --config, --set and --data-dir. Leaves: Settings. Imports no pydantic before a command needs its settings.
"""

from __future__ import annotations

import dataclasses
import functools
import getpass
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from plaudit.eventlog import LOG_FILE

if TYPE_CHECKING:
    from plaudit.settings import Settings
    from plaudit.types import Channel

P = ParamSpec("P")
R = TypeVar("R")

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
ChannelArgument = Annotated[str, typer.Argument(help='Channel, as "domain/tenant".')]


@dataclass(frozen=True)
class SettingsOptions:
    """--config, --set and --data-dir, as a command got them."""

    config: Path | None = None
    assigned: tuple[str, ...] = ()
    """Settings as "key=value"; of two with the same key the later one holds."""
    data_dir: Path | None = None

    def load(self) -> Settings:
        """Settings in force; --data-dir is the last word on data_dir. Raises Misconfigured."""
        from plaudit.settings import load_settings
        from plaudit.telemetry import configure

        last = [] if self.data_dir is None else [f"data_dir={self.data_dir}"]
        settings = load_settings(self.config, [*self.assigned, *last])
        # Standard output is the command's own: whatever is logged goes to standard error.
        configure(settings.log_format, settings.log_level)
        return settings

    def load_used(self) -> Settings:
        """As `load`, for a command that reads what is there: a mistyped directory is said, not made."""
        settings = self.load()
        settings.check_has_run()
        return settings

    def load_logged(self) -> Settings:
        """As `load_used`, for a command that reads the log: it may be Kafka's, and the store may be lost."""
        settings = self.load()
        if settings.log.kind == "sqlite" and not (settings.data_dir / LOG_FILE).exists():
            settings.check_has_run()
        return settings

    def and_set(self, assigned: str) -> SettingsOptions:
        """With one more "key=value"."""
        return dataclasses.replace(self, assigned=(*self.assigned, assigned))

    def as_arguments(self) -> list[str]:
        """The options as they are given to another process."""
        return [
            *(["--config", str(self.config)] if self.config else []),
            *(part for each in self.assigned for part in ("--set", each)),
            *(["--data-dir", str(self.data_dir)] if self.data_dir else []),
        ]


def takes_settings(command: Callable[Concatenate[SettingsOptions, P], R]) -> Callable[..., R]:
    """The command with the options --config, --set and --data-dir, which its first parameter is made of."""

    @functools.wraps(command)
    def run(
        *, config: ConfigOption = None, assign: SetOption = None, data_dir: DataDirOption = None, **values: Any
    ) -> R:
        return command(SettingsOptions(config, tuple(assign or ()), data_dir), **values)  # type: ignore[call-arg]

    # Typer learns from the signature which options there are: the command's own, then these three.
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in (("config", ConfigOption), ("assign", SetOption), ("data_dir", DataDirOption))
    ]
    parameters = [*own, *shared]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def channel_of(text: str) -> Channel:
    """The channel that an argument names; wrong usage for anything else."""
    from plaudit.types import Channel

    try:
        return Channel.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def operator() -> str:
    """Who gives the command, as records name the actor of a change."""
    return f"operator:{getpass.getuser()}"


def echo_json(value: Any, out: Path | None = None) -> None:
    """Print a value as JSON, or write it into the file `out`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    if out is None:
        typer.echo(text)
    else:
        write_file(text + "\n", out)


def write_file(text: str, file: Path) -> None:
    """Write a file, and the folders above it that are missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
