"""The demo's report: report.json for programs, report.md and pictures for people.

Enters: measurements as plain JSON types. Leaves: files. Rounds nothing in report.json, and hides nothing: refusals,
baselines that come close, and what the demo did not do stand in the text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plaudit.demo import plots
from plaudit.demo.plots import spoken
from plaudit.demo.wording import WORDINGS, Cell, Row, rate, short

KEYS = (
    "requests",
    "feedback",
    "domain",
    "headline",
    "releases",
    "baselines",
    "freshness_seconds",
    "seconds",
    "seed",
    "versions",
)
# A win-rate of so much less is still close: a few prompts in a hundred.
_CLOSE = 0.1
_FIRST = "by-release.png"
_ALT = {
    "by-release.png": "What the hidden preference says of each release and of baselines that need no trained policy",
    "by-iteration.png": "Reward of each turn's states, and what the hidden preference says of the same answers",
    "swaps.png": "Requests per second by release around each swap",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Measurements of one run. `data` holds KEYS and may hold more beside them."""

    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse a report without one of its keys."""
        missing = [key for key in KEYS if key not in self.data]
        if missing:
            raise ValueError(f"the report lacks {', '.join(missing)}")

    def write(self, out: Path) -> list[Path]:
        """Write report.json, the pictures and report.md into `out`; paths of the files."""
        out.mkdir(parents=True, exist_ok=True)
        data = out / "report.json"
        data.write_text(json.dumps(self.data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        pictures = plots.draw(self.data, out)
        page = out / "report.md"
        page.write_text(self.markdown([picture.name for picture in pictures]), encoding="utf-8")
        return [data, *pictures, page]

    def summary(self) -> str:
        """The first lines of the page, for a terminal."""
        return _headline(self.data).partition("\n\n")[2].replace("\n\n", "\n").replace("**", "")

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """The page for people."""
        shown = {name: f"![{_ALT.get(name, name)}]({name})" for name in pictures}
        first, rest = shown.pop(_FIRST, ""), list(shown.values())
        parts = [
            _headline(self.data, first),
            _releases(self.data),
            _baselines(self.data),
            *(["## How it got there", *_turns(self.data), *rest] if rest else []),
            _examples(self.data),
            _gates(self.data),
            _loop(self.data),
            _limits(self.data),
            _how(self.data),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def _served(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in data["releases"] if row["version"] and row.get("live_from")]


def _base(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return next((row for row in data["releases"] if row["version"] == 0), {})


def _headline(data: Mapping[str, Any], picture: str = "") -> str:
    """One claim, one chart, and what they rest on."""
    served, wording = _served(data), WORDINGS[data["headline"]]
    taken = f"{data['feedback']['acknowledged']:,} pieces of feedback"
    if served:
        last, base = served[-1], _base(data)
        claim = f"**{wording.claim(last, base)}** ({wording.basis(last, base)})."
        made = f"{taken} made {len(served)} release{'s' * (len(served) != 1)} that went live."
    else:
        refused = any((row.get("gate") or {}).get("accepted") is False for row in data["releases"])
        why = "The gate refused every candidate" if refused else "No turn found a candidate to release"
        claim = f"**{why}: the base model went on serving.**"
        below = " The checks that failed are below." if refused else ""
        made = f"{taken} were taken.{below} That is an answer, not an error."
    requests, feedback = data["requests"], data["feedback"]
    facts = (
        f"{made} {requests['sent']:,} requests were sent: {requests['failed']} failed, "
        f"{_count(requests['altered'])} changed because of a swap. Of the feedback {feedback['lost']} were lost and "
        f"{feedback['doubled']} counted twice. The run took {data['seconds'] / 60:.1f} minutes."
    )
    return "\n\n".join(part for part in (f"# Plaudit demo: {data['domain']}", claim, picture, facts) if part)


def _count(value: int | None) -> str:
    return "unknown how many" if value is None else f"{value:,}"


def _releases(data: Mapping[str, Any]) -> str:
    wording = WORDINGS[data["headline"]]
    return f"## Releases\n\n{_columns(wording.columns, data['releases'])}\n\n{wording.note}"


def _columns(columns: Mapping[str, Cell], rows: Sequence[Row]) -> str:
    """A table of the columns in which any row says something."""
    said = {head: [cell(row) for row in rows] for head, cell in columns.items()}
    heads = [head for head, cells in said.items() if any(cells)]
    return _table(heads, [[_cell(said[head][number]) for head in heads] for number in range(len(rows))])


def _baselines(data: Mapping[str, Any]) -> str:
    figures = data.get("baseline_figures")
    if not figures:
        return ""
    wording = WORDINGS[data["headline"]]
    columns: dict[str, Cell] = {"baseline": lambda row: str(row["name"]), **wording.baseline_columns}
    rows = [{**row, "name": spoken(name)} for name, row in figures.items()]
    text = wording.baseline_note
    pattern = data.get("filled_in_pattern")
    if pattern:
        text += f" The template: `{_cell(pattern)}`, with the question's last two subject words for `{{t}}`."
    return f"## Baselines\n\n{_columns(columns, rows)}\n\n{text}"


def _gates(data: Mapping[str, Any]) -> str:
    parts = []
    for row in data["releases"]:
        checks = (row.get("gate") or {}).get("checks", [])
        if not checks:
            continue
        verdict = "accepted" if row["gate"].get("accepted") else "refused"
        lines = [
            [
                check["name"],
                "passed" if check["passed"] else "**failed**",
                short(check.get("value")),
                short(check.get("threshold")),
                str(check.get("note", "")),
            ]
            for check in checks
        ]
        head = ["check", "", "value", "bound", "note"]
        parts.append(f"### Release {row['version']}: {verdict}\n\n{_table(head, lines)}")
    if not parts:
        return ""
    return "## What the gate said\n\n" + "\n\n".join(parts)


def _turns(data: Mapping[str, Any]) -> list[str]:
    """Of each turn whose states were judged: what it proposed, and whether more reward was less gold."""
    lines = []
    for place, turn in enumerate(data.get("turns") or [], start=1):
        states = {state["iteration"]: state for state in turn["states"]}
        chosen, most = states.get(turn["chosen"]), states[turn["most_reward"]]
        if chosen is None:
            continue
        proposed = f"proposed its state after {turn['chosen']} iterations" if turn["progressed"] else "proposed nothing"
        if turn["progressed"]:
            proposed += (
                f": {chosen['kl_base_nats_per_sequence']:.1f} nats from the base, reward {chosen['reward']:.2f}, "
                f"win-rate by the hidden preference {rate(chosen['gold_win_rate'])}"
            )
        lines.append(f"- Turn {place} {proposed}. {_parted(turn, states, most)}")
    if not lines:
        return []
    first = (
        "A turn compares several states of the policy by the reward model, on prompts kept out of its training. After "
        "all learning had ended, the hidden preference judged the same answers. If a policy is optimised too far, the "
        "reward goes on rising while the win-rate falls."
    )
    return [first, "\n".join(lines)]


def _parted(turn: Mapping[str, Any], states: Mapping[int, Any], most: Mapping[str, Any]) -> str:
    """Whether the state with the most reward is also the one that wins most, by the interval of the difference."""
    begin = f"The state with the most reward ({turn['most_reward']} iterations)"
    fall = turn["fall"]
    if fall is None:
        return f"{begin} is also the one that wins most often: no over-optimisation is to be seen."
    best = states[turn["most_gold"]]["gold_win_rate"]["estimate"]
    beside = (
        f"{begin} wins {most['gold_win_rate']['estimate']:.3f}, the one that wins most ({turn['most_gold']} "
        f"iterations) {best:.3f}; the difference is {rate(fall)}"
    )
    if fall["low"] > 0:
        return f"{beside}: more reward was less preferred, so that this turn could have gone too far."
    return f"{beside}, which may be chance: no over-optimisation is to be seen."


def _examples(data: Mapping[str, Any]) -> str:
    examples = data.get("examples") or []
    if not examples:
        return ""
    rows = [
        [
            _cell(row["prompt"]),
            _cell(row["before"]),
            _cell(row["after"]),
            f"{row['gold_after'] - row['gold_before']:+.2f}",
        ]
        for row in examples
    ]
    return (
        "## Before and after\n\nPicked by rule: all evaluation prompts stand in order of how much the first answer "
        "changed by the hidden preference, from the worst loss to the greatest gain; shown are the two ends and the "
        "three quarters between them.\n\n" + _table(["prompt", "base", "last release", "change"], rows)
    )


def _loop(data: Mapping[str, Any]) -> str:
    feedback, fresh = data["feedback"], data["freshness_seconds"]
    rows = [[key, f"{value:,}" if isinstance(value, int) else str(value)] for key, value in feedback.items()]
    replay = data.get("replay") or {}
    lines = [f"## The loop\n\n{_table(['feedback', ''], rows)}"]
    if fresh.get("p50") is not None:
        lines.append(
            f"From the moment a piece of feedback was accepted to the first reply of a release trained on it: "
            f"{fresh['p50']:.0f} s (median), {fresh['max']:.0f} s (maximum)."
        )
    if replay.get("replayed"):
        lines.append(
            f"{replay['replayed']} replies were generated again on an idle engine with the same release, seed and "
            f"batch width. {replay['spanned']} of them had been in flight during a swap. "
            f"{data['requests']['altered']} differed."
        )
    stages = data.get("stage_seconds") or {}
    if stages:
        lines.append(_table(["stage", "seconds"], [[name, f"{seconds:.0f}"] for name, seconds in stages.items()]))
    return "\n\n".join(lines)


def _limits(data: Mapping[str, Any]) -> str:
    lines = ["## What it did not do", ""]
    served = _served(data)
    last: Mapping[str, Any] = served[-1] if served else {}
    lines += _diversity(last)
    if last.get("commonest_opening") is not None:
        lines.append(
            f"- **Sameness**: the commonest opening begins {last['commonest_opening']:.0%} of its answers"
            f" ({last['commonest_opening_base']:.0%} of the base's)."
        )
    constant = data["baselines"].get("constant_answer")
    if constant:
        lines.append(
            f"- **One constant answer** wins {rate(constant)}: how far this judge can be pleased without reading the "
            "question."
        )
    filled = data["baselines"].get("filled_in_pattern")
    if filled:
        lines.append(
            f"- **One filled-in template** wins {rate(filled)}: how far the judge can be pleased by form and two words "
            "of the question. The win-rates above measure closeness to this preference, not helpfulness."
        )
    reached = last.get(data["headline"])
    prompted = data["baselines"].get("better_prompt")
    if prompted and reached:
        lines.append(
            f"- **A system prompt {_beside(prompted, reached)}**: the base model, told the preference in a "
            f"few sentences, reaches {rate(prompted)}. What can be said in a prompt, say there; feedback is for what "
            "nobody wrote down."
            + (" The tiny model follows no instruction, so that here this says little." if data.get("quick") else "")
        )
    if last.get("commonest_decision") is not None:
        lines.append(
            f"- **Sameness**: the commonest decision is made for {last['commonest_decision']:.0%} of the prompts."
        )
    if data["baselines"] and reached:
        name, best = max(data["baselines"].items(), key=lambda item: float(item[1]["estimate"]))
        lines.append(
            f"- **The best baseline {_beside(best, reached)}**: {spoken(name)} reaches {rate(best)}, the "
            f"last release {rate(reached)}."
        )
    lines += [
        "- **It learnt a preference**: what these simulated people like, on requests like theirs, and nothing else. A "
        "model of this size stays wrong about facts.",
        "- **The people are simulated**: real people disagree more, change their minds, and some of them attack.",
        "- **One seed**: repeat with `--seed` before you believe a difference between two runs.",
    ]
    return "\n".join(lines)


def _diversity(last: Mapping[str, Any]) -> list[str]:
    """What happened to diversity, by both figures, each as printed: what two digits do not show is no fall."""
    lines = []
    for key, name in (("distinct_2", "distinct-2"), ("distinct_masked", "distinct answers, question's words masked")):
        if last.get(key) is None or last.get(f"{key}_base") is None:
            continue
        now, before = f"{last[key]:.2f}", f"{last[f'{key}_base']:.2f}"
        change = "fell" if float(now) < float(before) else "did not fall"
        lines.append(f"- **Diversity {change}** ({name}): {now}; the base has {before} on equal terms.")
    return lines


def _beside(baseline: Mapping[str, Any], release: Mapping[str, Any]) -> str:
    """What a baseline is beside the release, in words."""
    if baseline["estimate"] >= release["estimate"]:
        return "does as well or better"
    close = baseline["high"] >= release["low"] or release["estimate"] - baseline["estimate"] <= _CLOSE
    return "comes close" if close else "does not come close here"


def _how(data: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    advantages = {"gae": "GAE against a value by the reward model's outlook", "rloo": "leave-one-out (RLOO)"}
    trained = advantages.get(str(data.get("advantages")), "") if WORDINGS[data["headline"]].sampled else ""
    lines = [
        f"## How it was made\n\nSeed {data['seed']}; {versions}." + (f" Advantages: {trained}." if trained else "")
    ]
    commands = data.get("commands") or []
    if commands:
        lines.append("Each process is a command that you can run yourself:")
        lines.append("```shell\n" + "\n".join(commands) + "\n```")
    return "\n\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
