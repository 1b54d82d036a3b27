"""From the acts about one interaction to evidence: the rules of the join as one pure function.

Enters: an interaction and every act and retraction that names it, in any order. Leaves: the status of each, and the
evidence of those that count. The result depends on the set of records alone, never on the order of their arrival, so
that it can be computed again whenever a record is added (docs/join.md, "What counts").
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from plaudit.domain import DomainPlugin
from plaudit.errors import (
    AnotherAnswer,
    IdConflict,
    NoInteraction,
    NotJoined,
    PlauditError,
    RetractionByOther,
    UnknownCandidate,
    UnknownDomain,
)
from plaudit.evidence.rows import StoredEvidence
from plaudit.evidence.tables import Status
from plaudit.plugins.guarded import GuardedPlugin
from plaudit.types import (
    Act,
    Channel,
    Choice,
    Comment,
    Evidence,
    Feedback,
    Interaction,
    Purpose,
    Ranking,
    nameless,
)

# (feedback id, is a retraction, digest): names an act or a retraction within its interaction.
Key: TypeAlias = tuple[str, bool, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAct:
    """An act with the digest of its body; `feedback.accepted_at` is the earliest of all records with this body."""

    feedback: Feedback
    digest: bytes

    @property
    def key(self) -> Key:
        """Its name within the interaction."""
        return (self.feedback.feedback_id, False, self.digest)

    @property
    def age(self) -> tuple[dt.datetime, str, bytes]:
        """What earlier and newer are decided by; never an offset, because a drained outbox puts old acts late."""
        return (self.feedback.accepted_at, self.feedback.feedback_id, self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRetraction:
    """A retraction; its digest tells raters apart."""

    feedback_id: str
    channel: Channel
    who: str
    digest: bytes

    @property
    def key(self) -> Key:
        """Its name within the interaction."""
        return (self.feedback_id, True, self.digest)


@dataclass(frozen=True, slots=True)
class About:
    """An interaction, with every act and retraction that names it."""

    interaction: Interaction
    acts: Sequence[StoredAct]
    retractions: Sequence[StoredRetraction]


@dataclass(slots=True)
class Derived:
    """What became of the records of one interaction."""

    statuses: dict[Key, Status] = field(default_factory=dict)
    errors: dict[Key, PlauditError] = field(default_factory=dict)
    evidence: list[StoredEvidence] = field(default_factory=list)

    def reject(self, key: Key, error: PlauditError) -> None:
        """Notes that the record cannot be used."""
        self.statuses[key] = Status.REJECTED
        self.errors[key] = error


def derive(about: Sequence[About], plugins: Mapping[str, DomainPlugin]) -> list[Derived]:
    """Statuses and evidence of all records of each interaction; none depends on another's.

    Of many at once, because each hand-over to a plugin's thread costs more than what most plugins do.
    """
    found = [Derived() for _ in about]
    counting = [
        (derived, each.interaction, act)
        for derived, each in zip(found, about, strict=True)
        for act in _counting(each.interaction, each.acts, each.retractions, derived)
    ]
    given = evidence_of([(interaction, act.feedback) for _, interaction, act in counting], plugins)
    for (derived, interaction, act), atoms in zip(counting, given, strict=True):
        if isinstance(atoms, PlauditError):
            derived.reject(act.key, atoms)
            continue
        derived.statuses[act.key] = Status.JOINED
        derived.evidence += [_stored(interaction, act.feedback, index, atom) for index, atom in enumerate(atoms)]
    return found


def _counting(
    interaction: Interaction, acts: Sequence[StoredAct], retractions: Sequence[StoredRetraction], derived: Derived
) -> list[StoredAct]:
    """The acts that become evidence; what becomes of all others is noted."""
    mine_acts = [act for act in acts if _belongs(interaction, act.feedback.channel, act.key, derived)]
    mine_retractions = [each for each in retractions if _belongs(interaction, each.channel, each.key, derived)]
    counting = _first_bodies(mine_acts, derived)
    retracted = _retracted(counting, mine_retractions, derived)
    if not interaction.consent.train:
        for act in counting.values():
            gone = act.feedback.feedback_id in retracted
            derived.statuses[act.key] = Status.RETRACTED if gone else Status.WITHHELD
        return []
    known = frozenset(candidate.candidate_id for candidate in interaction.candidates)
    usable = [
        act
        for act in counting.values()
        if _is_of_this_answer(act, interaction, derived) and _names_known_candidates(act, known, derived)
    ]
    newest = _newest(usable, derived)
    for act in usable:
        if act.feedback.feedback_id in retracted:
            derived.statuses[act.key] = Status.RETRACTED
    return [act for act in newest if act.feedback.feedback_id not in retracted]


def _belongs(interaction: Interaction, channel: Channel, key: Key, derived: Derived) -> bool:
    """Whether a record may be about this interaction at all; rejects it otherwise."""
    if channel != interaction.channel:
        derived.reject(key, NoInteraction(f"channel {channel} has no interaction {interaction.interaction_id}"))
        return False
    if interaction.purpose is Purpose.EVALUATE:
        derived.reject(
            key,
            NotJoined(f"interaction {interaction.interaction_id} was made for EVALUATE: feedback on it never counts"),
        )
        return False
    return True


def _first_bodies(acts: Iterable[StoredAct], derived: Derived) -> dict[str, StoredAct]:
    """By feedback id the body that counts: the earliest. Rejects the others."""
    counting: dict[str, StoredAct] = {}
    for act in sorted(acts, key=lambda each: each.age):
        first = counting.setdefault(act.feedback.feedback_id, act)
        if first is not act:
            derived.reject(
                act.key,
                IdConflict(
                    f"feedback {act.feedback.feedback_id} was accepted with another body at "
                    f"{first.feedback.accepted_at.isoformat()}, and that counts; a changed mind needs an id of its own"
                ),
            )
    return counting


def _retracted(
    counting: Mapping[str, StoredAct], retractions: Iterable[StoredRetraction], derived: Derived
) -> frozenset[str]:
    """Ids of the acts that their own raters withdrew. A retraction holds whenever it came."""
    withdrawn = set()
    for retraction in retractions:
        act = counting.get(retraction.feedback_id)
        if act is None:
            derived.statuses[retraction.key] = Status.UNMATCHED
        elif act.feedback.who == retraction.who:
            derived.statuses[retraction.key] = Status.APPLIED
            withdrawn.add(retraction.feedback_id)
        else:
            derived.reject(
                retraction.key,
                RetractionByOther(f"feedback {retraction.feedback_id} was given by another rater; it still counts"),
            )
    return frozenset(withdrawn)


def _is_of_this_answer(act: StoredAct, interaction: Interaction, derived: Derived) -> bool:
    """Whether the rater saw what the interaction records; rejects the act otherwise.

    A request that was sent again may have been answered twice, with two texts: the first in the log is the interaction.
    """
    seen = act.feedback.answer
    if not seen or not interaction.answers or seen in interaction.answers:
        return True
    derived.reject(
        act.key,
        AnotherAnswer(
            f"interaction {interaction.interaction_id} was answered more than once; its rater saw another answer "
            "than the one that the log holds first"
        ),
    )
    return False


def _names_known_candidates(act: StoredAct, known: frozenset[str], derived: Derived) -> bool:
    unknown = [each for each in candidates_of(act.feedback.act) if each not in known]
    if unknown:
        derived.reject(
            act.key,
            UnknownCandidate(
                f"interaction {act.feedback.interaction_id} has no candidate {unknown[0]!r}", candidate_id=unknown[0]
            ),
        )
    return not unknown


def _newest(acts: Iterable[StoredAct], derived: Derived) -> list[StoredAct]:
    """The newest act of each rater on each subject; the others are superseded, whether or not it is withdrawn.

    A withdrawn change of mind leaves nothing: what it replaced was taken back by the same person.
    """
    newest: dict[tuple[str, str], StoredAct] = {}
    for act in sorted(acts, key=lambda each: each.age):
        subject = (act.feedback.who, act.feedback.subject)
        if subject in newest:
            derived.statuses[newest[subject].key] = Status.SUPERSEDED
        newest[subject] = act
    return list(newest.values())


def candidates_of(act: Act) -> tuple[str, ...]:
    """Candidate ids that an act names; none for a comment on the whole interaction."""
    match act:
        case Choice():
            return (act.chosen_id, act.other_id)
        case Ranking():
            return act.candidate_ids
        case Comment(candidate_id=""):
            return ()
        case _:
            return (act.candidate_id,)


def evidence_of(
    said: Sequence[tuple[Interaction, Feedback]], plugins: Mapping[str, DomainPlugin]
) -> list[Sequence[Evidence] | PlauditError]:
    """The plugin's evidence of each act, or why there is none: PluginFailed or UnknownDomain."""
    found: list[Sequence[Evidence] | PlauditError] = [()] * len(said)
    places: dict[str, list[int]] = defaultdict(list)
    for place, (interaction, _) in enumerate(said):
        places[interaction.channel.domain].append(place)
    for domain, mine in places.items():
        acts = [said[place] for place in mine]
        for place, given in zip(mine, _asked(domain, acts, plugins), strict=True):
            found[place] = given
    return found


def _asked(
    domain: str, acts: Sequence[tuple[Interaction, Feedback]], plugins: Mapping[str, DomainPlugin]
) -> Sequence[Sequence[Evidence] | PlauditError]:
    plugin = plugins.get(domain)
    if isinstance(plugin, GuardedPlugin):
        return plugin.evidence_of(acts)
    if plugin is not None:
        return [plugin.to_evidence(*act) for act in acts]
    unknown = UnknownDomain(
        f"no plugin serves the domain {domain!r} here; install or allow it and start the join again",
        domain=domain,
        known=", ".join(sorted(plugins)),
    )
    return [unknown] * len(acts)


def _name(interaction: Interaction, feedback: Feedback) -> str:
    """Whom the evidence counts for, across interactions (docs/join.md, "Feedback without a rater")."""
    return feedback.who if feedback.rater or feedback.session_id else nameless(interaction.end_user)


def _stored(interaction: Interaction, feedback: Feedback, index: int, atom: Evidence) -> StoredEvidence:
    return StoredEvidence(
        interaction_id=interaction.interaction_id,
        feedback_id=feedback.feedback_id,
        index=index,
        kind=feedback.kind,
        evidence=atom,
        who=_name(interaction, feedback),
        accepted_at=feedback.accepted_at,
        prompt_group=interaction.prompt_group,
        channel=interaction.channel,
    )
