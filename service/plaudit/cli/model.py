"""`plaudit model`: base models that need no hub."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

model_app = typer.Typer(help="Base models that need no hub.", no_args_is_help=True)


@model_app.command("prepare")
def model_prepare(
    name: Annotated[Literal["smollm2", "tiny"], typer.Argument(help="smollm2 (135M, instruct) or tiny (for trials).")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
) -> None:
    """Write a base model in the Hugging Face format, without a hub."""
    from plaudit.demo.plan import cache_dir
    from plaudit.testing import models

    kept = cache_dir() / name
    if name == "tiny" or (kept / models.READY).exists():
        typer.echo(str(models.pretrained_tiny(out) if name == "tiny" else models.copied(kept, out)))
        return
    began = time.monotonic()

    def tell(done: int, total: int) -> None:
        typer.echo(f"{name}: step {done} of {total} after {time.monotonic() - began:.0f} s", err=True)

    typer.echo(f"{name}: half a minute, longer on a busy machine; once per folder", err=True)
    typer.echo(str(models.smollm2(out, progress=tell)))
