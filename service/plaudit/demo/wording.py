"""What the report shows and says, by the figure that says most about a run (its "headline").

Golds of texts compare within a prompt, so that the report counts won comparisons (gold_win_rate). A decision has a
worth of its own, so that the report shows it (gold) and what was gained. Enters: rows of report.json. Leaves: words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
Cell = Callable[[Row], str]

_KINDS = (
    "95% intervals over prompts. "
    'Prompts of "seen kinds" are of a kind that people also asked in the channel; those of "unseen kinds" are of a '
    "kind that nobody asked."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """How a run is told whose headline is one figure."""

    columns: Mapping[str, Cell]
    """Heads and cells of the table of releases; a column of empty cells is left out."""
    note: str
    baseline_columns: Mapping[str, Cell]
    baseline_note: str
    claim: Callable[[Row, Row], str]
    """What the last release reaches, from its row and the base's: the report's first sentence, and a title."""
    basis: Callable[[Row, Row], str]
    """On what this rests: interval, prompts and judge, to stand behind the claim."""
    value: Callable[[float], str]
    """One value of the figure, for pictures and sentences."""
    axis: str
    even: Callable[[Row], float | None]
    """Where a bar would be no better than the base, from the base's row."""
    sampled: bool
    """Whether training sampled what it rewards, so that the setting of its advantages says something."""


def rate(value: Mapping[str, Any] | None) -> str:
    """A rate with its interval, as the page writes it."""
    if not value:
        return "not measured"
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def number(value: float | None, places: int) -> str:
    """A figure; empty if there is none."""
    return "" if value is None else f"{value:.{places}f}"


def short(value: float | None) -> str:
    """A figure or a count in three digits; empty if there is none."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float) -> str:
    """A rate in per cent, without decimals; what is not quite all is not called all."""
    return ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def named(version: int) -> str:
    """A release's name; the base is judged by a second answer of itself."""
    return f"release {version}" if version else "base, asked again"


def clock(moment: str | None) -> str:
    """Time of day of a moment in ISO 8601."""
    return moment[11:19] if moment else ""


def _figure(name: str, *, of_base: bool = True) -> Cell:
    """A rate of a row; `of_base` False leaves the base's cell empty, where it would compare the base with itself."""

    def cell(row: Row) -> str:
        return rate(row[name]) if row.get(name) and (of_base or row.get("version") != 0) else ""

    return cell


def _with_bases(name: str) -> Cell:
    """A figure of variety, and the base's on equal terms behind it."""

    def cell(row: Row) -> str:
        own, bases = number(row.get(name), 2), number(row.get(f"{name}_base"), 2)
        return f"{own} ({bases})" if own and bases else own

    return cell


def _commonest(row: Row) -> str:
    if row.get("commonest_decision") is None:
        return ""
    words = str(row["commonest_decision_text"]).split()
    return f"{row['commonest_decision']:.2f} {' '.join(words[:6])}{' ...' * (len(words) > 6)}"


_IDENTITY: Mapping[str, Cell] = {
    "release": lambda row: "base" if row["version"] == 0 else str(row["version"]),
    "state": lambda row: str(row["state"]),
    "live from": lambda row: clock(row.get("live_from")),
}
_KL: Mapping[str, Cell] = {"KL": lambda row: number(row.get("kl_nats_per_sequence"), 2)}

_TEXTS = Wording(
    columns={
        **_IDENTITY,
        "win-rate": _figure("gold_win_rate", of_base=False),
        "seen kinds": _figure("gold_win_rate_seen", of_base=False),
        "unseen kinds": _figure("gold_win_rate_unseen", of_base=False),
        **_KL,
        "tokens": lambda row: number(row.get("mean_tokens"), 1),
        "distinct-2 (base)": _with_bases("distinct_2"),
        "distinct, masked (base)": _with_bases("distinct_masked"),
    },
    note="Win-rates are against the base on held-out prompts, as displayed, with "
    + _KINDS
    + " Diversity stands beside the base's on equally many answers to the same prompts; for distinct-2 each pair of "
    'answers is cut to the shorter one\'s words. "Distinct, masked" is the number of answers that still differ '
    "once the question's own words are blanked out, as a share of all.",
    baseline_columns={"win-rate": _figure("gold_win_rate")},
    baseline_note="What needs no trained policy, under the same judge. The constant answer and the filled-in template "
    "were searched for on prompts of the channel. A template that does well here shows how far the hidden preference "
    "can be pleased by form alone; sameness in the table above is the other half of that picture.",
    claim=lambda last, base: (
        f"{named(last['version']).capitalize()} wins {percent(last['gold_win_rate']['estimate'])} of comparisons with "
        "the base model"
    ),
    basis=lambda last, base: (
        f"95% interval {percent(last['gold_win_rate']['low'])} to {percent(last['gold_win_rate']['high'])}; on prompts "
        "that nobody had asked before, judged by the hidden preference of the simulated people; 50% is no better than "
        "the base"
    ),
    value=percent,
    axis="Wins against the base, judged by the hidden preference",
    even=lambda base: 0.5,
    sampled=True,
)

_ORDERS = Wording(
    columns={
        **_IDENTITY,
        "gold": _figure("gold"),
        "gain over the base": _figure("gold_gain", of_base=False),
        "gain, seen kinds": _figure("gold_gain_seen", of_base=False),
        "gain, unseen kinds": _figure("gold_gain_unseen", of_base=False),
        "accuracy": _figure("accuracy"),
        "mean cost": _figure("cost"),
        **_KL,
        "commonest decision": _commonest,
    },
    note="Gold is the hidden preference of the simulated people, in its own units: of the option that was decided, or "
    "of a slate's places by their weights, on held-out prompts, with " + _KINDS + " The base was asked twice, and its "
    "second answers stand in its row. Accuracy and the cost of mistakes are counted where one label is right.",
    baseline_columns={
        "gold": _figure("gold"),
        "gain over the base": _figure("gold_gain"),
        "accuracy": _figure("accuracy"),
        "mean cost": _figure("cost"),
    },
    baseline_note="What needs no trained policy, under the same judge. The best constant order sorts options by the "
    "mean gold of their texts on prompts of the channel, which only the judge knows. The reward model alone decides by "
    "the newest release's reward model without its policy.",
    claim=lambda last, base: (
        f"{named(last['version']).capitalize()} is worth {last['gold']['estimate']:.2f} per request, the base model "
        f"{base['gold']['estimate']:.2f}"
    ),
    basis=lambda last, base: (
        f"a gain of {last['gold_gain']['estimate']:+.2f}, 95% interval {last['gold_gain']['low']:+.2f} to "
        f"{last['gold_gain']['high']:+.2f}; on prompts that nobody had asked before, judged by the hidden preference "
        "of the simulated people in its own units"
    ),
    value=lambda value: f"{value:.2f}",
    axis="Worth of what is decided or shown, by the hidden preference",
    even=lambda base: base["gold"]["estimate"] if base.get("gold") else None,
    sampled=False,
)

WORDINGS: Mapping[str, Wording] = {"gold_win_rate": _TEXTS, "gold": _ORDERS}
