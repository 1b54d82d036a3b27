"""What became of the feedback on one interaction: its acts with their status, the evidence they gave, and its use.

Enters: the evidence store, an interaction's id and the channel's salt. Leaves: plain JSON types. Texts of people and of
the model are left out unless they are asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Table, select

from plaudit.errors import PlauditError
from plaudit.eventlog.codec import Retraction, decode
from plaudit.evidence import ingest
from plaudit.evidence.rows import evidence_from_bytes
from plaudit.evidence.splits import Split, group_split, rater_split
from plaudit.evidence.tables import EvidenceTable, FeedbackRow, InteractionRow, from_micros
from plaudit.store.database import Database
from plaudit.types import KIND_OF_ACT, Channel, Feedback, Interaction

_INTERACTIONS: Table = InteractionRow.metadata.tables["interactions"]
_FEEDBACK: Table = FeedbackRow.metadata.tables["feedback"]
_EVIDENCE: Table = EvidenceTable.metadata.tables["evidence"]

_TEXTS = frozenset({"text", "displayed_text"})


def channel_of(database: Database, interaction_id: str) -> Channel | None:
    """The channel of an interaction, or of feedback that waits for it; None if the join has read neither."""
    with database.reading() as connection:
        for table in (_INTERACTIONS, _FEEDBACK):
            query = select(table.c.domain, table.c.tenant).where(table.c.interaction_id == interaction_id).limit(1)
            if (row := connection.execute(query).first()) is not None:
                return Channel(*row)
    return None


def trace(
    database: Database, interaction_id: str, salt: bytes | None, *, few_raters: bool = False, texts: bool = False
) -> dict[str, Any]:
    """An interaction with its feedback and evidence. Without a salt nothing is said of splits and use."""
    with database.reading() as connection:

        def rows(table: Table) -> list[Any]:
            return list(connection.execute(select(table).where(table.c.interaction_id == interaction_id)).mappings())

        heads, acts, evidence = rows(_INTERACTIONS), rows(_FEEDBACK), rows(_EVIDENCE)
        interaction = ingest.load_interactions(heads).get(interaction_id)
    places = {each.candidate_id: index for index, each in enumerate(interaction.candidates)} if interaction else {}
    found = [
        {
            "feedback_id": row["feedback_id"],
            **_act(row["value"], places, texts),
            "who": row["who"],
            "accepted_at": from_micros(row["accepted_at"]).isoformat(timespec="seconds"),
            "status": row["status"],
            "reason": row["reason"],
            "evidence": [],
        }
        for row in sorted(acts, key=lambda row: (row["accepted_at"], row["feedback_id"], row["retraction"]))
    ]
    for row in sorted(evidence, key=lambda row: (row["feedback_id"], row["index"])):
        stored = evidence_from_bytes(row["payload"])
        piece = {"piece": type(stored.evidence).__name__, **_fields(stored.evidence, places, texts)}
        if salt is not None:
            group = group_split(salt, stored.prompt_group, few_raters)
            piece |= _use(group if few_raters else rater_split(salt, stored.who), group)
        for act in found:
            if act["feedback_id"] == stored.feedback_id and act["status"] == "joined":
                act["evidence"].append(piece)
    return {"interaction_id": interaction_id, **_head(interaction, texts), "feedback": found}


def _head(interaction: Interaction | None, texts: bool) -> dict[str, Any]:
    if interaction is None:
        return {"here": False}
    head: dict[str, Any] = {
        "here": True,
        "channel": str(interaction.channel),
        "purpose": interaction.purpose.value,
        "completed_at": interaction.completed_at.isoformat(timespec="seconds"),
        "policy_version": interaction.policy_version,
        "consent": {"store": interaction.consent.store, "train": interaction.consent.train},
        "candidates": [
            {
                "place": index,
                "candidate_id": each.candidate_id,
                "release": each.release_version,
                "valid": each.valid,
                **({"option_id": each.option_id} if each.option_id else {}),
                **({"text": each.displayed_text} if texts else {}),
            }
            for index, each in enumerate(interaction.candidates)
        ],
    }
    if texts:
        head["messages"] = [dataclasses.asdict(each) for each in interaction.messages]
    return head


def _act(record: bytes, places: dict[str, int], texts: bool) -> dict[str, Any]:
    try:
        said = decode(record)
    except PlauditError as error:
        return {"kind": "", "problem": error.reason}
    if isinstance(said, Retraction):
        return {"kind": "retraction"}
    assert isinstance(said, Feedback), "the join stores nothing else here"
    reasons = {"reasons": list(said.reasons)} if said.reasons else {}
    return {"kind": KIND_OF_ACT[type(said.act)].value, **_fields(said.act, places, texts), **reasons}


def _fields(value: Any, places: dict[str, int], texts: bool) -> dict[str, Any]:
    """Fields of an act or of evidence; candidates by the place in which they were shown, texts by their length."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        each = getattr(value, field.name)
        if field.name in _TEXTS and not texts:
            found[f"{field.name}_characters"] = len(each)
        elif isinstance(each, tuple):
            found[field.name] = [places.get(part, part) for part in each]
        else:
            found[field.name] = places.get(each, each) if isinstance(each, str) else each
    return found


def _use(rater: Split, group: Split) -> dict[str, str]:
    """What a piece of evidence serves, by the rule of docs/architecture.md, "Splits"."""
    if rater is Split.TRAIN:
        use = "trains the reward model" if group is Split.TRAIN else "counted, not used: a train rater on a gate prompt"
    else:
        use = "fits the gate's reward model" if rater is Split.GATE else "judges the reward model"
    return {"rater_split": rater.value, "group_split": group.value, "use": use}
