"""Pictures of the demo's report, as PNG files.

Enters: the report's data (the keys of report.json). Leaves: files. Computes nothing that the report does not hold, and
draws no picture for which the report has no data. One style: a title that says what is seen, labels on the marks
themselves, values beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plaudit.demo.wording import WORDINGS, named, percent

Data = Mapping[str, Any]

INK, MUTED, RELEASE, PROXY, PLAIN = "#1f2328", "#6e7781", "#0969da", "#bc4c00", "#b8c0c8"
_VERSIONS = (PLAIN, RELEASE, "#1a7f37", "#8250df", PROXY, "#bf3989")


def draw(data: Data, out: Path) -> list[Path]:
    """Write every picture for which there is data; paths of the files written."""
    pictures: list[tuple[str, Callable[[Data], Any]]] = [
        ("by-release.png", _by_release),
        ("by-iteration.png", _by_iteration),
        ("swaps.png", _swaps),
    ]
    written = []
    for name, picture in pictures:
        figure = picture(data)
        if figure is not None:
            path = out / name
            figure.savefig(path, dpi=120)
            written.append(path)
    return written


def _figure(rows: int = 1, *, height: float, sharex: bool = False) -> tuple[Any, list[Any]]:
    # A Figure of its own needs no pyplot, so no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, 1, 1)]
    for row in range(1, rows):
        panels.append(figure.add_subplot(rows, 1, row + 1, sharex=panels[0] if sharex else None))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PLAIN)
        axes.tick_params(colors=MUTED, labelsize=9)
    return figure, panels


def _titled(axes: Any, title: str, below: str) -> None:
    axes.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold", color=INK)
    axes.text(0, 1.02, below, transform=axes.transAxes, fontsize=9, color=MUTED, va="bottom")


def _by_release(data: Data) -> Any:
    """The headline figure by release, above what costs no training; a bar and its interval per row."""
    headline, wording = data["headline"], WORDINGS[data["headline"]]
    judged = [row for row in data["releases"] if row.get(headline)]
    rows = [(named(row["version"]), row[headline], RELEASE if row["version"] else MUTED) for row in judged]
    cheap = sorted(data["baselines"].items(), key=lambda item: -float(item[1]["estimate"]))
    rows += [(spoken(name), rate, PLAIN) for name, rate in cheap]
    if not rows:
        return None
    figure, (axes,) = _figure(height=1.7 + 0.38 * len(rows))
    places = range(len(rows))
    axes.barh(places, [rate["estimate"] for _, rate, _ in rows], color=[colour for _, _, colour in rows], height=0.62)
    span = max(rate["high"] for _, rate, _ in rows) - min(0.0, *(rate["low"] for _, rate, _ in rows))
    for place, (_, rate, _) in enumerate(rows):
        axes.plot([rate["low"], rate["high"]], [place, place], color=INK, linewidth=1.2)
        text = f"{wording.value(rate['estimate'])}  [{wording.value(rate['low'])}, {wording.value(rate['high'])}]"
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        edge = max(rate["high"], 0.0) + 0.015 * span
        axes.text(edge, place, text, va="center", fontsize=9, color=INK, bbox=behind, zorder=4)
    base: Data = next((row for row in judged if row["version"] == 0), {})
    even = wording.even(base)
    if even is not None:
        axes.axvline(even, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.text(even, -0.62, " no better than the base", fontsize=8, color=MUTED, va="bottom")
    axes.set_yticks(places, [name for name, _, _ in rows], color=INK, fontsize=10)
    axes.set_ylim(len(rows) - 0.4, -1.0)
    low, high = min(0.0, *(rate["low"] for _, rate, _ in rows)), max(rate["high"] for _, rate, _ in rows)
    axes.set_xlim(low - 0.03 * span * (low < 0), high + 0.34 * span)
    # Room for the values stands beyond the scale; nothing can be measured there.
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= max(high, even or high)])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: wording.value(value))
    last = judged[-1] if judged and judged[-1]["version"] else None
    title = wording.claim(last, base) if last else "What needs no trained policy; no release went live"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    below = f"{wording.axis}, on held-out prompts.\nBlack lines: 95% intervals. Grey: needs no trained policy."
    figure.supxlabel(below, x=0.01, ha="left", fontsize=9, color=MUTED)
    return figure


def _by_iteration(data: Data) -> Any:
    """How far each turn went: the reward of its states above, what people's hidden preference says below.

    Reward and preference have a panel each over the same distances, from the same answers: if one rises while the
    other falls, a policy was optimised too far.
    """
    turns = _turns(data)
    golden = [turn for turn in turns if turn["states"][0].get("gold_win_rate")]
    judged = [row for row in data["releases"] if row["version"] and row.get("gold_win_rate")]
    # One point of one figure is no comparison.
    judged = judged if len(judged) > 1 or any(row.get("score_win_rate") for row in judged) else []
    panels = bool(turns) + bool(golden) + bool(judged)
    if not panels:
        return None
    figure, axes = _figure(panels, height=0.6 + 2.7 * panels, sharex=True)
    if turns:
        _rewards(axes[0], turns)
    if golden:
        _golds(axes[1], golden)
    if judged:
        _believed(axes[-1], judged)
    axes[-1].set_xlabel("distance from the base: KL per answer, nats", fontsize=9, color=MUTED)
    axes[-1].margins(x=0.12)
    return figure


def _turns(data: Data) -> list[Data]:
    """Turns with their states, each with its number (from 1), what became of it in words, and the state proposed.

    Judged states if the run has them, of every turn; else what manifests hold, which only releases have.
    """
    by_time = {row["as_of"]: row for row in data["releases"] if row.get("as_of")}
    found: list[Data] = []
    for number, turn in enumerate(data.get("turns") or [], start=1):
        release = by_time.get(turn["as_of"], {})
        fate = "" if release.get("live_from") else " (refused)" if turn["progressed"] else " (proposed nothing)"
        facts = {name: turn[name] for name in ("chosen", "states")}
        found.append({"number": number, "fate": fate, "proposed": turn["progressed"], **facts})
    return found or [
        {
            "number": row["version"],
            "fate": "" if row.get("live_from") else " (refused)",
            "proposed": True,
            "chosen": row.get("chosen"),
            "states": row["iterates"],
        }
        for row in data["releases"]
        if row["version"] and row.get("iterates")
    ]


def _rewards(axes: Any, turns: Sequence[Data]) -> None:
    for turn in turns:
        colour = _VERSIONS[turn["number"] % len(_VERSIONS)]
        states = [(each["kl_base_nats_per_sequence"], each["reward"], each["iteration"]) for each in turn["states"]]
        axes.plot([kl for kl, _, _ in states], [reward for _, reward, _ in states], "o-", color=colour, markersize=4)
        for kl, reward, iteration in states:
            axes.annotate(
                str(int(iteration)),
                (kl, reward),
                (0, 5),
                textcoords="offset points",
                fontsize=7,
                color=MUTED,
                ha="center",
            )
        chosen = _proposed(turn)
        place = (chosen["kl_base_nats_per_sequence"], chosen["reward"])
        axes.plot([place[0]], [place[1]], "o", color=colour, markersize=9 if turn["proposed"] else 4)
        _name_turn(axes, turn, place, colour)
    axes.set_ylabel("reward", fontsize=9, color=MUTED)
    axes.margins(y=0.2)
    _titled(
        axes,
        "What training saw, iteration by iteration",
        "Reward by each turn's own reward model on prompts kept out of training; large: the state that was proposed",
    )


def _golds(axes: Any, turns: Sequence[Data]) -> None:
    for turn in turns:
        colour = _VERSIONS[turn["number"] % len(_VERSIONS)]
        states = [(each["kl_base_nats_per_sequence"], each["gold_win_rate"]) for each in turn["states"]]
        axes.plot([kl for kl, _ in states], [rate["estimate"] for _, rate in states], "o-", color=colour, markersize=4)
        for kl, rate in states:
            axes.plot([kl, kl], [rate["low"], rate["high"]], color=colour, linewidth=0.9, alpha=0.55)
        chosen = _proposed(turn)
        place = (chosen["kl_base_nats_per_sequence"], chosen["gold_win_rate"]["estimate"])
        axes.plot([place[0]], [place[1]], "o", color=colour, markersize=9 if turn["proposed"] else 4)
        _name_turn(axes, turn, place, colour, percent(place[1]))
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_ylabel("wins against the base", fontsize=9, color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    axes.margins(y=0.1)
    prompts = len(turns) and min(turn["states"][0]["gold_win_rate"]["n"] for turn in turns)
    _titled(
        axes,
        "What the hidden preference says of the same answers",
        f"Win-rate against the base on the same {prompts} prompts, 95% intervals; no training code can read it",
    )


def _proposed(turn: Data) -> Data:
    """The state that was proposed, or from which the next turn goes on if nothing was."""
    states: Sequence[Data] = turn["states"]
    return next((state for state in states if state["iteration"] == turn["chosen"]), states[-1])


def _name_turn(axes: Any, turn: Data, place: tuple[float, float], colour: str, value: str = "") -> None:
    # To the left, because the next turn begins where this one ended, and goes right; if there is room.
    room = place[0] > 0.25 * max(state["kl_base_nats_per_sequence"] for state in turn["states"])
    offset, side = ((-8, 8), "right") if room else ((8, -14), "left")
    name = f"turn {turn['number']}{turn['fate']}" + (f": {value}" if value else "")
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
    offset_points = {"textcoords": "offset points", "fontsize": 9, "color": colour, "ha": side}
    axes.annotate(name, place, offset, bbox=behind, zorder=4, **offset_points)


def _believed(axes: Any, judged: Sequence[Data]) -> None:
    for key, colour, label, shift in (
        ("gold_win_rate", RELEASE, "hidden preference", -0.006),
        ("score_win_rate", PROXY, "gate's reward model", 0.006),
    ):
        reach = max(row["kl_nats_per_sequence"] for row in judged) or 1.0
        points = [(row["kl_nats_per_sequence"] + shift * reach, row[key]) for row in judged if row.get(key)]
        for kl, rate in points:
            axes.plot([kl, kl], [rate["low"], rate["high"]], color=colour, linewidth=1.4)
            axes.plot([kl], [rate["estimate"]], "o", color=colour)
            side = "right" if shift < 0 else "left"
            axes.annotate(
                percent(rate["estimate"]),
                (kl, rate["estimate"]),
                (8 if side == "left" else -8, 0),
                textcoords="offset points",
                fontsize=9,
                color=colour,
                ha=side,
                va="center",
            )
        if points:
            axes.plot([], [], "o-", color=colour, label=label)
    for row in judged:
        axes.annotate(
            named(row["version"]),
            (row["kl_nats_per_sequence"], 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=9,
            ha="center",
            color=INK,
        )
    axes.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_ylabel("wins against the base", fontsize=9, color=MUTED)
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    axes.margins(y=0.25)
    axes.legend(frameon=False, fontsize=9, loc="best", labelcolor="linecolor")
    # What the gate believes of choices is no win-rate.
    believed = "What the gate believed, and what" if any(row.get("score_win_rate") for row in judged) else "What"
    _titled(
        axes,
        f"{believed} the hidden preference says",
        "Win-rate of each release against the base, 95% intervals; dashed: no better than the base",
    )


def _swaps(data: Data) -> Any:
    """Requests by the second in which they began and the release that answered, around each swap."""
    swaps = [swap for swap in data.get("swaps") or [] if swap["by_version"]]
    if not swaps:
        return None
    figure, panels = _figure(len(swaps), height=0.6 + 2.3 * len(swaps))
    for axes, swap in zip(panels, swaps, strict=True):
        _swap(axes, swap)
    panels[-1].set_xlabel("seconds since this server first answered with the new release", fontsize=9, color=MUTED)
    return figure


def _swap(axes: Any, swap: Data) -> None:
    floor = [0] * len(swap["seconds"])
    for version, counts in sorted(swap["by_version"].items(), key=lambda item: int(item[0])):
        colour = _VERSIONS[int(version) % len(_VERSIONS)]
        axes.bar(swap["seconds"], counts, 0.92, bottom=floor, color=colour, align="edge")
        floor = [below + count for below, count in zip(floor, counts, strict=True)]
        middle = sum(second * count for second, count in zip(swap["seconds"], counts, strict=True)) / max(
            sum(counts), 1
        )
        axes.text(
            middle,
            1.0,
            f"{named(int(version)).partition(',')[0]}: {sum(counts):,}",
            fontsize=9,
            ha="center",
            va="bottom",
            color=INK if colour == PLAIN else colour,
            transform=axes.get_xaxis_transform(),
        )
    axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if swap.get("promoted") is not None:
        axes.axvline(swap["promoted"], color=MUTED, linewidth=1, linestyle=":")
        axes.text(
            swap["promoted"],
            0.9,
            "promoted ",
            fontsize=8,
            ha="right",
            color=MUTED,
            transform=axes.get_xaxis_transform(),
        )
    axes.set_ylabel("requests per second", fontsize=9, color=MUTED)
    axes.set_xlim(swap["seconds"][0], swap["seconds"][-1] + 1)
    axes.set_ylim(0, max(floor) * 1.15 or 1)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(
        f"The swap to {named(swap['version'])}, by the second in which requests began\n",
        loc="left",
        fontsize=12,
        fontweight="bold",
        color=INK,
    )


def spoken(name: str) -> str:
    """A baseline's key in plain words."""
    words = {
        "constant_answer": "one constant answer",
        "filled_in_pattern": "one filled-in template",
        "better_prompt": "preference in the prompt",
        "longest_of_samples": "longest of several",
        "shortest_of_samples": "shortest of several",
        "best_constant": "best constant order",
        "commonest_label": "the commonest label",
    }
    return words.get(name, name.replace("_", " "))
