"""What demos measured, for readers: the chart and a paragraph of the README, and a part of docs/results.md.

`python scripts/demo_results.py --add demo-report/report.json` takes a report of `plaudit demo` into
benchmarks/results/demo.json; a run of the same population and seed is replaced. Without --add the chart and both pages
are written from what the file holds; with --check nothing is written and the exit code is 1 if anything would change.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "results" / "demo.json"
CHART = ROOT / "docs" / "img" / "win-rate.svg"
PAGES = {"README.md": ROOT / "README.md", "docs/results.md": ROOT / "docs" / "results.md"}
BEGIN, END = "<!-- demo: begin -->", "<!-- demo: end -->"

KEPT = (
    *("domain", "population", "headline", "quick", "seed", "seconds", "versions", "requests", "feedback", "replay"),
    *("freshness_seconds", "baselines", "constant_answer_text", "filled_in_pattern", "busy"),
)
OF_A_RELEASE = (
    *("version", "state", "live_from", "gold_win_rate", "gold_win_rate_seen", "gold_win_rate_unseen"),
    *("kl_nats_per_sequence", "mean_words", "distinct_2", "distinct_2_base", "distinct_masked"),
    *("distinct_masked_base", "commonest_opening", "commonest_opening_base"),
)
MODELS = {True: "a tiny model (about a million parameters)", False: "SmolLM2-135M-Instruct"}
NAMES = {
    "constant_answer": "one constant answer",
    "filled_in_pattern": "one filled-in template",
    "better_prompt": "preference told in the prompt",
    "best_of_4": "best of 4 by the reward model",
    "shortest_of_samples": "shortest of several",
    "longest_of_samples": "longest of several",
}
Run = Mapping[str, Any]


def main() -> None:
    """Take a report, write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--add", type=Path, help="report.json of a demo of texts")
    parser.add_argument("--busy", action="store_true", help="the run shared its cores with other programs: say so")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something would change")
    options = parser.parse_args()
    runs = json.loads(RUNS.read_text(encoding="utf-8"))["runs"] if RUNS.exists() else []
    if options.add:
        runs = added(runs, json.loads(options.add.read_text(encoding="utf-8")) | {"busy": options.busy})
        RUNS.write_text(json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    wanted = {
        CHART: chart(shown(runs)),
        PAGES["README.md"]: filled(PAGES["README.md"], sentence(shown(runs))),
        PAGES["docs/results.md"]: filled(PAGES["docs/results.md"], tables(runs)),
    }
    changed = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if options.check:
        sys.exit(int(bool(changed)))
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8")


def added(runs: Sequence[Run], report: Run) -> list[Run]:
    """The runs with a report's figures; the larger model's first, then by seed. Raises ValueError for other reports."""
    if report["headline"] != "gold_win_rate":
        raise ValueError("the chart shows win-rates: take a report of a domain of texts")
    run = {key: report[key] for key in KEPT if key in report}
    run["releases"] = [{key: row[key] for key in OF_A_RELEASE if key in row} for row in report["releases"]]
    others = [one for one in runs if (one["population"], one["seed"]) != (run["population"], run["seed"])]
    return sorted([*others, run], key=lambda one: (bool(one["quick"]), one["population"], one["seed"]))


def shown(runs: Sequence[Run]) -> list[Run]:
    """The runs of the README: those of the larger model if there are any, and of one population."""
    if not runs:
        raise ValueError(f"{RUNS} has no run: add a report with --add")
    return [run for run in runs if run["population"] == runs[0]["population"]]


def live(run: Run) -> list[Mapping[str, Any]]:
    """Releases that went live, the base left out."""
    return [row for row in run["releases"] if row["version"] and row.get("live_from") and row.get("gold_win_rate")]


# The README ------------------------------------------------------------------------------------------------


def sentence(runs: Sequence[Run]) -> str:
    """The chart with its claim, and on what it rests."""
    first = runs[0]
    served = live(first)
    command = "make demo-quick" if first["quick"] else "make demo"
    if served:
        last = served[-1]["gold_win_rate"]
        claim = f"Release {served[-1]['version']} wins {percent(last)} of comparisons with the base model"
    else:
        claim = "The gate refused every candidate"
    parts = [
        f"![{title(runs)}; docs/results.md has the figures](docs/img/win-rate.svg)",
        f"`{command}` on {MODELS[first['quick']]}, seed {first['seed']}, two CPU cores, "
        f"{minutes(first)}: {first['feedback']['acknowledged']:,} pieces of feedback. "
        f"**{claim}** on held-out prompts; {cheap(first)}. {traffic(first)}",
    ]
    if len(runs) > 1:
        more = "; ".join(
            f"seed {run['seed']}: "
            + (", ".join(f"release {row['version']} {percent(row['gold_win_rate'])}" for row in live(run)) or "none")
            for run in runs[1:]
        )
        parts.append(f"Other seeds, {more}.")
    return "\n\n".join(parts)


def minutes(run: Run) -> str:
    """How long it took."""
    beside = " beside other programs, which took most of both cores" if run.get("busy") else ""
    return f"{run['seconds'] / 60:.0f} minutes{beside}"


def cheap(run: Run) -> str:
    """What costs no training."""
    told = ("constant_answer", "filled_in_pattern", "better_prompt")
    words = [f"{NAMES[name]} {percent(run['baselines'][name])}" for name in told if name in run["baselines"]]
    return ", ".join(words)


def traffic(run: Run) -> str:
    """What happened to requests and to replies that a swap met."""
    return (
        f"{run['requests']['sent']:,} requests, {run['requests']['failed']} failed; "
        f"{run['replay']['replayed']} replies generated again, {run['replay']['spanned']} of which had been in flight "
        f"during a swap: {run['requests']['altered']} differed."
    )


# docs/results.md -------------------------------------------------------------------------------------------


def tables(runs: Sequence[Run]) -> str:
    """Every run as a table."""
    head = """## What the demo measured

<!-- Written by scripts/demo_results.py out of benchmarks/results/demo.json; do not edit down to the end mark. -->

Simulated people share a hidden preference. The learner sees their feedback alone; at the end the preference judges
every release on prompts that nobody had asked, half of them of kinds that the channel never saw. A win-rate is against
the base's answers to the same prompts; 0.5 is no better. Intervals are 95%, over prompts. The constant answer and the
filled-in template were searched for with the hidden preference itself, which no one outside of a simulation could do:
they show how far the judge can be pleased by form alone. `plaudit demo` writes such a report;
`python scripts/demo_results.py --add demo-report/report.json` takes it into this page."""
    return "\n\n".join([head, *(run_part(run) for run in runs)])


def run_part(run: Run) -> str:
    """One run: what happened, releases, baselines."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    served = live(run)
    command = "plaudit demo --quick" if run["quick"] else "plaudit demo"
    text = (
        f"`{command} --seed {run['seed']}`, {minutes(run)}: {run['feedback']['acknowledged']:,} "
        f"pieces of feedback ({run['feedback']['lost']} lost, {run['feedback']['doubled']} counted twice) made "
        f"{len(served)} release{'s' * (len(served) != 1)} that went live. {traffic(run)}"
    )
    rows = [
        [
            "the base again" if not row["version"] else f"**release {row['version']}**",
            rate(row["gold_win_rate"]),
            rate(row.get("gold_win_rate_seen")),
            rate(row.get("gold_win_rate_unseen")),
            f"{row['kl_nats_per_sequence']:.1f}",
            f"{row['mean_words']:.0f}",
            pair(row, "distinct_2"),
            pair(row, "distinct_masked"),
            pair(row, "commonest_opening"),
        ]
        for row in run["releases"]
        if row.get("gold_win_rate")
    ]
    rows += [
        [NAMES.get(name, name.replace("_", " ")), rate(value), *[""] * 7] for name, value in run["baselines"].items()
    ]
    head = ["", "all", "kinds seen", "kinds unseen", "KL, nats", "words"]
    head += ["distinct-2 (base)", "distinct, masked (base)", "commonest opening (base)"]
    model = MODELS[run["quick"]]
    refused = [f"version {row['version']}" for row in run["releases"] if row["state"] == "rejected"]
    note = f"\n\nRefused by the gate: {', '.join(refused)}." if refused else ""
    return (
        f"### {model[0].upper()}{model[1:]}, seed {run['seed']}\n\n{text}\n\n{table(head, rows)}{note}\n\n({versions})"
    )


# The chart -------------------------------------------------------------------------------------------------

STYLE = """
    .card { fill: #ffffff; stroke: #d0d7de; } .ink { fill: #1f2328; } .muted { fill: #57606a; }
    .bar { fill: #d0d7de; } .release { fill: #0969da; } .base { fill: #8c959f; }
    .line { stroke: #1f2328; } .grid { stroke: #d0d7de; } .even { stroke: #57606a; stroke-dasharray: 5 4; }
    @media (prefers-color-scheme: dark) {
      .card { fill: #0d1117; stroke: #30363d; } .ink { fill: #e6edf3; } .muted { fill: #9ea7b3; }
      .bar { fill: #30363d; } .release { fill: #388bfd; } .base { fill: #6e7681; }
      .line { stroke: #e6edf3; } .grid { stroke: #30363d; } .even { stroke: #9ea7b3; }
    }"""
LEFT, RIGHT, WIDTH, STEP, BAR = 250, 720, 960, 30, 18
LETTER = 7.9  # pixels that a letter of a name takes at most, on average


def chart(runs: Sequence[Run]) -> str:
    """An SVG: a bar with its interval for each release and baseline of each run, readable on light and dark."""
    bars = []
    for run in runs:
        seed = f", seed {run['seed']}" * (len(runs) > 1)
        bars += [
            (f"base, asked again{seed}", row["gold_win_rate"], "base") for row in run["releases"] if not row["version"]
        ]
        bars += [(f"release {row['version']}{seed}", row["gold_win_rate"], "release") for row in live(run)]
    for name in NAMES:
        found = [run for run in runs if name in run["baselines"]]
        for run in found:
            seed = f", seed {run['seed']}" * (len(runs) > 1)
            bars.append((NAMES[name] + seed, run["baselines"][name], "bar"))
    left = max(LEFT, round(24 + LETTER * max(len(name) for name, _, _ in bars)))
    pixels = RIGHT - left
    top, height = 92, 92 + STEP * len(bars) + 46
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title" font-size="14" '
        "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\">",
        "  <!-- Written by scripts/demo_results.py out of benchmarks/results/demo.json; do not edit. -->",
        f'  <title id="title">Win-rate against the base by release: {html.escape(MODELS[runs[0]["quick"]])}</title>',
        f"  <style>{STYLE}\n  </style>",
        f'  <rect class="card" x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="12"/>',
        f'  <text class="ink" x="24" y="34" font-size="17" font-weight="600">{html.escape(title(runs))}</text>',
        f'  <text class="muted" x="24" y="57">{html.escape(below(runs))}</text>',
    ]
    for tick in (0, 25, 50, 75, 100):
        x = left + pixels * tick / 100
        kind = "even" if tick == 50 else "grid"
        lines.append(f'  <path class="{kind}" d="M{x:g} {top - 10}V{top + STEP * len(bars)}" stroke-width="1"/>')
        # The quarters' own numbers would meet the words in the middle.
        word = {25: "", 50: "50%: no better than the base", 75: ""}.get(tick, f"{tick}%")
        lines.append(
            f'  <text class="muted" x="{x:g}" y="{height - 20}" text-anchor="middle" font-size="12">{word}</text>'
        )
    for number, (name, value, kind) in enumerate(bars):
        y = top + STEP * number
        low, at, high = (left + pixels * value[key] for key in ("low", "estimate", "high"))
        weight = ' font-weight="600"' if kind == "release" else ""
        lines += [
            f'  <text class="ink" x="{left - 12}" y="{y + 14}" text-anchor="end"{weight}>{html.escape(name)}</text>',
            f'  <rect class="{kind}" x="{left}" y="{y}" width="{at - left:.1f}" height="{BAR}" rx="2"/>',
            f'  <path class="line" d="M{low:.1f} {y + BAR / 2:g}H{high:.1f}M{low:.1f} {y + 5}v8M{high:.1f} {y + 5}v8" '
            'stroke-width="1.5" fill="none"/>',
            f'  <text class="ink" x="{RIGHT + 18}" y="{y + 14}"{weight}>{percent(value)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def title(runs: Sequence[Run]) -> str:
    """The chart's claim."""
    served = live(runs[0])
    if not served:
        return "The gate refused every candidate: the base model went on serving"
    *others, last = (f"{run['feedback']['acknowledged']:,}" for run in runs)
    pieces = f"{', '.join(others)} and {last}" if others else last
    return f"After {pieces} pieces of feedback: wins against the base model by release"


def below(runs: Sequence[Run]) -> str:
    """What the chart rests on."""
    model = MODELS[runs[0]["quick"]]
    judge = "simulated people and their hidden preference; held-out prompts, 95% intervals"
    return f"{model[0].upper()}{model[1:]}; {judge}"


# Words -----------------------------------------------------------------------------------------------------


def percent(value: Mapping[str, float]) -> str:
    """A rate in per cent with its interval."""
    return f"{whole(value['estimate'])} [{whole(value['low'])}, {whole(value['high'])}]"


def whole(value: float) -> str:
    """A rate in per cent; what is not quite all is not called all."""
    return ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def rate(value: Mapping[str, float] | None) -> str:
    """A rate with its interval, for tables."""
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else ""


def pair(row: Mapping[str, Any], key: str) -> str:
    """A figure of variety, and the base's on equal terms."""
    if row.get(key) is None or row.get(f"{key}_base") is None:
        return ""
    return f"{row[key]:.2f} ({row[f'{key}_base']:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)])


def filled(page: Path, between: str) -> str:
    """A page with a new text between its marks; raises ValueError if it has none."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} needs the marks {BEGIN} and {END}, one behind the other")
    return f"{head}{BEGIN}\n{between}\n{END}{tail}"


if __name__ == "__main__":
    main()
