"""What a turn needs before it may run, in numbers: one list of rules for all who ask.

Enters: counts, or evidence as units. Leaves: `Need`s, and in words what feedback would meet them. The steps of a turn
require them, `plaudit status` and the metrics show them, `plaudit learn plan` counts by them. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from plaudit.domain import Declaration
from plaudit.evidence.splits import Bounds, Split, group_bounds, rater_bounds
from plaudit.learner.outcome import Need
from plaudit.reward.comparisons import MOST_CONTRASTS_OF_ONE, Comparison, comparisons, thumb_contrasts
from plaudit.reward.units import Units
from plaudit.settings import ChannelLearnSettings, GateSettings
from plaudit.types import FeedbackKind

EVENTS = "new training events"
TRAIN_PROMPTS = "prompts to train on"
GATE_PROMPTS = "gate prompts"
COMPARISONS = "calibration comparisons"
CONTRASTS = "calibration contrasts between one rater's thumbs"
RATERS = "calibration raters"
TRAIN_ACTS = "usable pieces of feedback of train raters"
GATE_ACTS = "usable pieces of feedback of gate raters"

# Answers in a ranking that advice speaks of, and the pairs in it.
RANKED = 4
_PAIRS = RANKED * (RANKED - 1) // 2
# Half up, half down: as few thumbs of one rater as reach all contrasts that one rater counts for.
_THUMBS_OF_ONE = math.ceil(2 * math.sqrt(MOST_CONTRASTS_OF_ONE))


def of_events(events: int, settings: ChannelLearnSettings, *, force: bool = False) -> tuple[Need, ...]:
    """Of the first look: acts of train raters on train groups since the last turn; one is enough if it is forced."""
    return (Need(EVENTS, events, 1 if force else settings.min_events),)


def of_prompts(train: int, gate: int, settings: GateSettings, note: str = "") -> tuple[Need, ...]:
    """Of step 1: prompts that can be asked again."""
    return Need(TRAIN_PROMPTS, train, 1, note), Need(GATE_PROMPTS, gate, settings.min_prompts, note)


def judged_by(held_out: Units, settings: GateSettings) -> tuple[list[Comparison], bool]:
    """Comparisons of calibration raters, and whether a reward model is judged by them.

    By those that people made if they are enough; else by contrasts between their thumbs if those are; else by what
    people did too.
    """
    said = comparisons(held_out)
    if len(said) >= settings.reward_comparisons:
        return said, True
    if len(thumb_contrasts(held_out, None)) >= settings.reward_comparisons:
        return said, False
    done = comparisons(held_out, behaviour=True)
    return done, len(done) >= settings.reward_comparisons


def of_evidence(
    held_out: Units, train: int, gate: int, settings: GateSettings, notes: Mapping[Split, str] | None = None
) -> tuple[Need, ...]:
    """Of step 2: what both fits and the judgement need. `train` and `gate` are usable acts of those raters."""
    notes = notes or {}
    pairs, enough = judged_by(held_out, settings)
    contrasts = thumb_contrasts(held_out, None)
    # A channel of thumbs alone has no comparisons: contrasts between the thumbs of one rater stand in for them.
    by_pairs = enough or len(pairs) >= len(contrasts)
    ground = pairs if by_pairs else contrasts
    raters = len({each.who for each in ground})
    return (
        Need(COMPARISONS if by_pairs else CONTRASTS, len(ground), settings.reward_comparisons),
        Need(RATERS, raters, settings.reward_raters, notes.get(Split.CALIBRATION, "")),
        Need(TRAIN_ACTS, train, 1, notes.get(Split.TRAIN, "")),
        Need(GATE_ACTS, gate, 1, notes.get(Split.GATE, "")),
    )


def share(bounds: Bounds, split: Split) -> float:
    """The share of raters or of prompt groups that a split gets."""
    low = 0.0
    for bound, name in bounds:
        if name is split:
            return bound - low
        low = bound
    return 0.0


def advice(needs: Iterable[Need], acts: int, declaration: Declaration) -> str:
    """About how much more feedback meets the needs, in words; empty if all are met.

    `acts`: all that people gave so far; what they give from now on is taken to be of the same kinds by as many people.
    """
    short = {need.what: need for need in needs if not need.met}
    few, kinds = declaration.few_raters, declaration.kinds
    groups, raters = group_bounds(few), rater_bounds()
    judges = share(groups if few else raters, Split.CALIBRATION)
    trains = share(groups, Split.TRAIN) * (1.0 if few else share(raters, Split.TRAIN))
    said = []
    if need := short.get(EVENTS):
        said.append(f"about {about(_missing(need) / trains)} more pieces of feedback ({trains:.0%} count here)")
    if need := short.get(COMPARISONS) or short.get(CONTRASTS):
        said.append(_for_comparisons(need, acts, judges, kinds))
    if need := short.get(RATERS):
        verb, people = ("on", "prompts") if few else ("of", "people")
        said.append(f"feedback {verb} about {about(_missing(need) / judges)} more {people} ({judges:.0%} count here)")
    if need := short.get(GATE_PROMPTS) or short.get(TRAIN_PROMPTS):
        portion = share(groups, Split.GATE if need.what == GATE_PROMPTS else Split.TRAIN)
        said.append(f"about {about(_missing(need) / portion)} more different prompts ({portion:.0%} count here)")
    # Who is asked for more acts and more people anyway is not asked again.
    if not said and (lacking := [what for what in (TRAIN_ACTS, GATE_ACTS) if what in short]):
        said.append(f"feedback of more people ({', '.join(lacking)})")
    return "; ".join(said)


def _for_comparisons(need: Need, acts: int, judges: float, kinds: frozenset[FeedbackKind]) -> str:
    missing = _missing(need) / judges
    ways = []
    if FeedbackKind.CHOICE in kinds:
        ways.append(f"{about(missing)} choices between two answers")
    if FeedbackKind.RANKING in kinds:
        ways.append(f"{about(missing / _PAIRS)} rankings of {RANKED}")
    if FeedbackKind.LABEL in kinds:
        ways.append(f"{about(missing)} labels")
    if FeedbackKind.THUMBS in kinds and (need.what == CONTRASTS or not ways):
        ways.append(f"{about(missing / MOST_CONTRASTS_OF_ONE * _THUMBS_OF_ONE)} thumbs, {_THUMBS_OF_ONE} per person")
    now = (
        f"about {about(_missing(need) * acts / need.have)} more pieces of feedback as they come now"
        if need.have
        else ""
    )
    cheapest = " or ".join(ways)
    return f"{now}, or {cheapest}, for the comparisons" if now else f"about {cheapest}, for the comparisons"


def _missing(need: Need) -> int:
    return need.want - need.have


def about(count: float) -> int:
    """Rounded up to two figures: the split of those who come is not known."""
    whole = math.ceil(count - 1e-6)  # shares are differences of bounds
    unit = int(10 ** max(0, len(str(whole)) - 2))
    return math.ceil(whole / unit) * unit


class PlainText:
    """A `plaudit.reward.shown.Text` without a tokeniser: two texts are equal if they are shown alike.

    Counts then are those of a turn, but for texts that are shown alike and were made of different tokens.
    """

    eos_ids: frozenset[int] = frozenset()

    def encode_text(self, text: str) -> tuple[int, ...]:
        """The text's bytes."""
        return tuple(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Nothing, so that what was shown is taken as text."""
        return ""
