"""`plaudit release estimate`: values of a channel's releases, estimated from feedback on drawn orders."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plaudit.cli.options import ChannelArgument, JsonOption, SettingsOptions, channel_of, echo_json, takes_settings

if TYPE_CHECKING:
    from plaudit.learner.valuing import Valued
    from plaudit.release.intervals import Interval

VersionOption = Annotated[int | None, typer.Option("--version", help="Another release beside base and live.", min=1)]
ClipOption = Annotated[float | None, typer.Option("--clip", help="Cut importance weights to this.", min=1.0)]


@takes_settings
def estimate(
    given: SettingsOptions,
    channel: ChannelArgument,
    version: VersionOption = None,
    clip: ClipOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the value of releases in a domain of choices from feedback on drawn orders (purpose EXPLORE)."""
    from plaudit.learner.valuing import value

    named, settings = channel_of(channel), given.load_used()
    found = value(settings, named, version, clip=math.inf if clip is None else clip)
    if as_json:
        echo_json(_finite(dataclasses.asdict(found) | {"channel": channel}))
        return
    for line in _value_lines(found):
        typer.echo(line)


def _value_lines(found: Valued) -> Iterator[str]:
    """What an operator reads about values."""
    yield (
        f"{found.channel}: {found.reactions} reactions of {found.raters} raters to drawn orders on gate prompts, "
        "which no release has learnt from"
    )
    if not found.values:
        yield "nothing to estimate from: let some requests have the purpose EXPLORE, and people react to them"
        return
    yield "value per interaction, by what people gave; the two bounds together are a 90% interval"
    for each in found.values:
        name = "base" if not each.version else f"version {each.version}"
        name += " (live)" if each.version == found.live else ""
        name += ", as it draws" if each.shows == "drawn" else ", as it serves"
        told = each.estimates
        if told is None:
            yield f"{name}: {each.why_not}"
            continue
        yield f"{name}: {_interval('SNIPS', told.snips)}; {_interval('DR', told.dr)}; {_interval('IPS', told.ips)}"
        note = f"  effective sample {told.ess:.0f} of {told.interactions}; in the log {_bounds(told.observed)}"
        yield note + (f"; {told.clipped} weights cut to {told.clip:g}" if told.clipped else "")
        if each.gain is not None:
            yield f"  less the base: {_bounds(each.gain)}"


def _interval(name: str, interval: Interval | None) -> str:
    return f"{name} {_bounds(interval)}" if interval is not None else f"{name} needs a reward model"


def _bounds(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _finite(value: Any) -> Any:
    """JSON has no infinity: what is not finite is null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
