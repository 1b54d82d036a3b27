"""`plaudit release import`: an adapter that was trained elsewhere as a release of a channel. For operators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, channel_of, echo_json, operator, takes_settings


@takes_settings
def import_(
    given: SettingsOptions,
    channel: Annotated[str, typer.Argument(help='Channel, as "domain/tenant"; it begins here if it has never served.')],
    folder: Annotated[Path, typer.Argument(help="Folder that PEFT's save_pretrained wrote.")],
    sha256: Annotated[str, typer.Option("--sha256", help="SHA-256 of adapter_model.safetensors, to check it.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Take a LoRA adapter in PEFT's format as a release, proved against PEFT itself; promote it to serve it."""
    settings = given.load()
    from plaudit.learner.adopt import adopt

    made = adopt(settings, channel_of(channel), folder, actor=operator(), reason=reason, sha256=sha256)
    row, proof = made.row, made.proof
    if as_json:
        found = {"channel": channel, "version": row.version, "digest": row.digest, "state": str(row.state)}
        measured = {"greatest": proof.greatest, "mean": proof.mean, "from_base": proof.from_base}
        echo_json(found | {"proof": measured})
        return
    typer.echo(
        f"{channel}: version {row.version} is {row.state}; PEFT's log-probs differ by {proof.greatest:.2g} nats at "
        f"most, the base's by {proof.from_base:.2g} on average"
    )
    typer.echo(f"serve it with: plaudit release promote {channel} {row.version}")
