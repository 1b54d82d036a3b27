"""Moderation over gRPC: an item alone is asked, a verdict decided, explained, labelled and joined."""

import pytest
from plaudit.client import Plaudit
from plaudit.eventlog import Topic
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import load_plugins
from plaudit.testing.serving import local_server
from plaudit.types import Channel, Label, Message
from plaudit_moderation.plugin import CATEGORIES

PLUGINS = load_plugins(("moderation", "moderation-rationale"))
CHANNEL = Channel("moderation", "default")


@pytest.fixture
def server(tmp_path, tiny_engine):
    with local_server(tmp_path / "data", tiny_engine, PLUGINS) as running:
        yield running


def test_an_item_gets_a_verdict_a_rationale_and_a_label_that_counts_for_moderators_alone(server):
    item = [Message("system", "Be kind."), Message("user", "You fool.")]
    with Plaudit(server.target, patience=0.0, timeout=30.0) as client:
        verdict = client.choose("moderation", item, [], end_user="ada")
        assert {option.option_id for option in verdict.ranking} == set(CATEGORIES)
        assert sum(option.probability for option in verdict.ranking) == pytest.approx(1.0, abs=1e-5)
        why = [*item, Message("assistant", verdict.decision)]
        assert client.generate("moderation-rationale", why, max_tokens=8, end_user="ada").completions
        for rater in ("ada", "grace", ""):
            verdict.label("severe", rater=rater)
    recorded = {each.channel.domain: each for each in server.records(Topic.INTERACTIONS)}
    # The rationale is asked in the very conversation of the verdict.
    asked = recorded["moderation"].prompt_tokens
    assert recorded["moderation-rationale"].prompt_tokens[: len(asked)] == asked

    store = EvidenceStore(server.settings.store_url)
    join = Join(server.log, store, PLUGINS, server.settings.join)
    try:
        while join.run_once(0.1):
            pass
        (row,) = store.freeze(CHANNEL, b"salt", few_raters=True, policy_version="1").rows
        assert row.evidence == Label(candidate=verdict.ranking[0].candidate_id, value="severe")
        # Under other rules the same label teaches nothing.
        assert store.freeze(CHANNEL, b"salt", few_raters=True, policy_version="2").rows == ()
    finally:
        join.close()
        store.close()
