"""`plaudit learn plan`: how much feedback a first release takes."""

from __future__ import annotations

from typing import Annotated

import typer

from plaudit.cli.options import JsonOption, SettingsOptions, channel_of, echo_json, takes_settings


@takes_settings
def learn_plan(
    given: SettingsOptions,
    channel: Annotated[
        str, typer.Argument(help="Channel whose settings and domain count; those of the process if it is left out.")
    ] = "",
    raters: Annotated[int, typer.Option("--raters", help="People who give feedback.", min=1, max=100_000)] = 40,
    thumbs: Annotated[str, typer.Option("--thumbs", help="Share of the feedback that is thumbs, such as 70%.")] = "",
    choices: Annotated[str, typer.Option("--choices", help="Share that choose between two answers.")] = "",
    rankings: Annotated[str, typer.Option("--rankings", help="Share that rank four answers.")] = "",
    per_prompt: Annotated[
        float, typer.Option("--per-prompt", help="Pieces of feedback that each prompt gets.", min=1)
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Say how much feedback a first release takes, and why, before any was given.

    Shares that are left out are 0; if all are, 70% thumbs, 20% choices and 10% rankings are meant.
    """
    settings = given.load()
    import dataclasses

    from plaudit.learner.plan import Mix, as_text, plan
    from plaudit.plugins import load_plugins

    few = False
    if channel:
        parsed = channel_of(channel)
        settings = settings.for_channel(parsed)
        found = load_plugins(settings.plugins.allow).get(parsed.domain)
        few = found is not None and found.declaration.few_raters
    try:
        words = (thumbs, choices, rankings) if thumbs or choices or rankings else ("70%", "20%", "10%")
        shares = dict(zip(("thumbs", "choices", "rankings"), map(_share, words), strict=True))
        made = plan(Mix(raters=raters, per_prompt=per_prompt, **shares), settings, few_raters=few)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if as_json:
        echo_json(dataclasses.asdict(made))
    else:
        typer.echo(as_text(made))


def _share(text: str) -> float:
    """A share as "70%" or "0.7", 0 if it is left out; raises ValueError."""
    text = text or "0"
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"{text!r} is no share; write it as 70% or 0.7") from None
    if share > 1:
        raise ValueError(f"{text} is more than the whole; write a share as 70% or 0.7")
    return share
