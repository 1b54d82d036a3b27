"""Pictures of the demo's report, as PNG files.

Enters: the report's data (the keys of report.json). Leaves: files. Computes nothing that the report does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plaudit.demo.wording import WORDINGS

Data = Mapping[str, Any]

_INK, _GOLD, _PROXY, _PLAIN = "#222222", "#b8860b", "#2b6cb0", "#888888"
_VERSIONS = ("#b0b0b0", "#2b6cb0", "#2f855a", "#b83280", "#c05621", "#553c9a")


def draw(data: Data, out: Path) -> list[Path]:
    """Write every picture for which there is data; paths of the files written."""
    pictures: list[tuple[str, Callable[[Data, Any], bool]]] = [
        ("gold-by-release.png", _gold_by_release),
        ("gold-against-kl.png", _gold_against_kl),
        ("traffic.png", _traffic),
    ]
    written = []
    for name, picture in pictures:
        figure, axes = _canvas()
        if picture(data, axes):
            path = out / name
            figure.savefig(path, dpi=120)
            written.append(path)
    return written


def _canvas() -> tuple[Any, Any]:
    # A Figure of its own needs no pyplot, so no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _gold_by_release(data: Data, axes: Any) -> bool:
    """The headline figure by release, with what cheap baselines reach."""
    headline, wording = data["headline"], WORDINGS[data["headline"]]
    judged = [row for row in data["releases"] if row.get(headline)]
    bars = [(_named(row["version"]), row[headline], _GOLD) for row in judged]
    bars += [(name.replace("_", " "), rate, _PLAIN) for name, rate in data["baselines"].items()]
    if not bars:
        return False
    for place, (_, rate, colour) in enumerate(bars):
        axes.bar(place, rate["estimate"], color=colour, width=0.6)
        below, above = rate["estimate"] - rate["low"], rate["high"] - rate["estimate"]
        axes.errorbar(place, rate["estimate"], yerr=[[max(below, 0)], [max(above, 0)]], color=_INK, capsize=4)
    even = wording.even(next((row for row in judged if row["version"] == 0), {}))
    if even is not None:
        axes.axhline(even, color=_INK, linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(bars)), [name for name, _, _ in bars], rotation=20, ha="right")
    if wording.bounds is not None:
        axes.set_ylim(*wording.bounds)
    axes.set_ylabel(wording.axis)
    axes.set_title("Fresh prompts: release against base (dashed: no better than the base)", fontsize=10)
    return True


def _gold_against_kl(data: Data, axes: Any) -> bool:
    """What the reward model believes and what gold says, by distance from the base."""
    # In order of the releases, not of their distance: a later release may well have come back.
    rows = [row for row in data["releases"] if row["version"] and row.get("kl_nats_per_sequence") is not None]
    drawn = False
    for key, colour, label in (("gold_win_rate", _GOLD, "gold"), ("score_win_rate", _PROXY, "reward model (gate)")):
        points = [(row["kl_nats_per_sequence"], row[key]) for row in rows if row.get(key)]
        if not points:
            continue
        distances = [0.0, *(distance for distance, _ in points)]
        axes.plot(distances, [0.5, *(rate["estimate"] for _, rate in points)], "o-", color=colour, label=label)
        for distance, rate in points:
            axes.plot([distance, distance], [rate["low"], rate["high"]], color=colour, linewidth=1)
        drawn = True
    if not drawn:
        return False
    for row in rows:
        axes.annotate(f"release {row['version']}", (row["kl_nats_per_sequence"], 0.03), fontsize=8, ha="center")
    axes.set_ylim(0, 1)
    axes.set_xlabel("KL to the base, nats")
    axes.set_ylabel("wins against the base")
    axes.set_title("What the reward model believes, and what gold says", fontsize=10)
    axes.legend(frameon=False)
    return True


def _traffic(data: Data, axes: Any) -> bool:
    """Replies a bin of time by the release that made them, with the swaps."""
    traffic = data.get("traffic") or {}
    if not traffic.get("seconds"):
        return False
    floor = [0.0] * len(traffic["seconds"])
    width = traffic["bin_seconds"]
    for place, (version, counts) in enumerate(sorted(traffic["by_version"].items(), key=lambda item: int(item[0]))):
        label = _named(int(version)).partition(",")[0]
        colour = _VERSIONS[place % len(_VERSIONS)]
        axes.bar(traffic["seconds"], counts, width, bottom=floor, color=colour, label=label, align="edge")
        floor = [below + count for below, count in zip(floor, counts, strict=True)]
    top = max(floor) or 1.0
    for swap in traffic["swaps"]:
        axes.axvline(swap["seconds"], color=_INK, linewidth=1, linestyle="--")
        axes.text(swap["seconds"], top * 1.04, f" {_named(swap['version']).partition(',')[0]} live", fontsize=8)
    axes.set_ylim(0, top * 1.3)
    axes.set_xlabel("seconds since the first request")
    axes.set_ylabel(f"replies in {width:g} s")
    axes.legend(frameon=False, loc="upper left", ncols=4)
    return True


def _named(version: int) -> str:
    """A release's name in pictures; the base is judged by a second answer of itself."""
    return f"release {version}" if version else "base, asked again"
