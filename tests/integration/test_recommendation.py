"""Recommendation over gRPC: retrieved items become a slate, and what people do with it becomes placed evidence."""

import dataclasses

import pytest
from plaudit.client import Plaudit
from plaudit.errors import UnknownCandidate
from plaudit.eventlog import Topic
from plaudit.evidence.join import Join
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import load_plugins
from plaudit.reward.dataset import collect
from plaudit.settings import RewardSettings
from plaudit.testing.serving import local_server
from plaudit.types import Channel, Option, Passage, Purpose, RankingEvidence

PLUGINS = load_plugins(("recommendation",))
SUBJECTS = ("tea", "rain", "chess", "wool", "salt", "ice", "silk")
CHANNEL = Channel("recommendation", "default")
ITEMS = [Option(f"item-{n}", f"a film about {what}") for n, what in enumerate(SUBJECTS)]
EVENTS = [Passage("item-3", ITEMS[3].text, "liked")]


@pytest.fixture
def server(tmp_path, tiny_engine):
    with local_server(tmp_path / "data", tiny_engine, PLUGINS) as running:
        yield running


def test_a_slate_is_shown_taken_from_and_read_with_the_places_that_its_items_had(server, tiny_engine):
    with Plaudit(server.target, patience=0.0, timeout=30.0) as client:
        slate = client.choose("recommendation", "What next?", ITEMS, passages=EVENTS, purpose=Purpose.EXPLORE)
        # An item that the user has had comes after all others, also in an order that is drawn.
        assert slate.ranking[-1].option_id == "item-3"
        slate.signal("taken", 1.0, candidate="#2", rater="ann")
        slate.thumbs_up(candidate="#1", rater="ann")
        # The slate has five places: nobody saw the sixth item.
        for act in (
            lambda: slate.signal("taken", 1.0, candidate="#5", rater="ann"),
            lambda: slate.choose("#0", "#6", rater="ann"),
        ):
            with pytest.raises(UnknownCandidate, match="not among the first 5"):
                act()
    assert len(server.records(Topic.FEEDBACK)) == 2

    store = EvidenceStore(server.settings.store_url)
    join = Join(server.log, store, PLUGINS, server.settings.join)
    try:
        while join.run_once(0.1):
            pass
        data = store.freeze(CHANNEL, b"salt")
    finally:
        join.close()
        store.close()
    ids = [option.candidate_id for option in slate.ranking]
    taken = RankingEvidence(order=(ids[2], ids[0], ids[1], ids[3], ids[4]), observed=1)
    assert taken in [row.evidence for row in data.rows]
    everyone = tuple(dataclasses.replace(row, rater_split=Split.TRAIN, group_split=Split.TRAIN) for row in data.rows)
    units = collect(dataclasses.replace(data, rows=everyone), Split.TRAIN, tiny_engine, RewardSettings())
    (ranking,) = units.rankings
    assert ranking.places == (2, 0, 1, 3, 4)
    assert units.drawn == {ranking.event.event_id}
