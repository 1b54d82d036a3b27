"""Prints the SQL of a small store as the release on the path writes it: tests/contract/golden/store_0_1_0.sql.

Run with release 0.1.0 on the path; kept so that the next release's store can be made in the same way.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import sys
import tempfile
from pathlib import Path

from plaudit.eventlog import Topic
from plaudit.eventlog.codec import encode_feedback, encode_interaction
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.release.registry import Pin, Registry
from plaudit.settings import JoinSettings
from plaudit.testing.evidence import CHANNEL, PlainDomain, make_feedback, make_interaction
from plaudit.types import Action, Choice, Passage, Purpose, Thumbs


def main() -> None:
    """Fills a store by a join and a registry, and prints it."""
    folder = Path(tempfile.mkdtemp())
    url, log = f"sqlite:///{folder / 'evidence.sqlite'}", SqliteEventLog(folder / "log.sqlite")
    option = dataclasses.replace(
        make_interaction("i2").candidates[1],
        finish_reason=None,
        option_id="o",
        redacted=True,
        valid=False,
        propensity=0.25,
    )
    whole = make_interaction("i2", group="g2")
    interactions = [
        make_interaction("i1", candidates=3),
        dataclasses.replace(
            whole,
            action=Action.CHOICE,
            passages=(Passage("p", "Text – 文", "source"),),
            end_user="end",
            rater="ann",
            candidates=(whole.candidates[0], option),
        ),
        make_interaction("i3", purpose=Purpose.EVALUATE),
    ]
    acts = [
        make_feedback("f1", "i1", Thumbs("a", True)),
        make_feedback("f2", "i1", Choice("a", "b"), rater="bob"),
        make_feedback("f3", "not there", Thumbs("a", True)),
        make_feedback("f4", "i3", Thumbs("a", True)),
    ]
    for each in interactions:
        log.append(Topic.INTERACTIONS, each.interaction_id, encode_interaction(each, producer="old"))
    for act in acts:
        log.append(Topic.FEEDBACK, act.interaction_id, encode_feedback(act, producer="old"))
    store = EvidenceStore(url)
    worker = Join(log, store, {"plain": PlainDomain()}, JoinSettings())
    while worker.run_once(0):
        pass
    frozen = store.freeze(CHANNEL, b"salt")
    registry = Registry(url, str(folder / "registry"))
    registry.ensure_channel(CHANNEL, "b" * 64)
    registry.change(CHANNEL, Pin(True), expected_generation=0, actor="ops", reason="hold")
    sys.stdout.write(f"-- evidence digest: {frozen.digest}\n")
    sys.stdout.write("\n".join(sqlite3.connect(folder / "evidence.sqlite").iterdump()) + "\n")


if __name__ == "__main__":
    main()
