"""What acts of feedback are about, for `to_evidence` of any domain: candidates that are there, and a choice as a pair.

Enters: an interaction and what an act names. Leaves: candidates and evidence. Pure; plugins import it.
"""

from __future__ import annotations

from plaudit.errors import InvalidField, UnknownCandidate
from plaudit.types import Candidate, Choice, Interaction, Pair, PairOutcome


def candidate_of(interaction: Interaction, candidate_id: str, *, places: int | None = None) -> Candidate:
    """The candidate of this id; `places`: among so many from the first (a slate), None: among all.

    Raises UnknownCandidate.
    """
    shown = interaction.candidates[:places]
    for candidate in shown:
        if candidate.candidate_id == candidate_id:
            return candidate
    among = "" if places is None else f" among the {len(shown)} that it showed"
    raise UnknownCandidate(
        f"interaction {interaction.interaction_id} has no candidate {candidate_id!r}{among}", candidate_id=candidate_id
    )


def known(interaction: Interaction, candidate_id: str) -> str:
    """The id itself, if the interaction has a candidate of it; raises UnknownCandidate."""
    return candidate_of(interaction, candidate_id).candidate_id


def pair_of(interaction: Interaction, act: Choice, *, places: int | None = None) -> Pair:
    """A choice as a pair in the order in which its two candidates were shown, so that a bias to the first can be seen.

    Raises InvalidField if both are one, and UnknownCandidate; `places` as in `candidate_of`.
    """
    if act.chosen_id == act.other_id:
        raise InvalidField("a choice names two different candidates", field="other_id")
    named = [candidate_of(interaction, each, places=places) for each in (act.chosen_id, act.other_id)]
    first, second = sorted(named, key=interaction.candidates.index)
    outcome = PairOutcome.FIRST if first is named[0] else PairOutcome.SECOND
    return Pair(
        first=first.candidate_id,
        second=second.candidate_id,
        outcome=PairOutcome.TIE if act.tie else outcome,
        tie_offered=act.tie_offered or act.tie,
    )
