"""Tenants with opposite tastes on one base at the same time: each is served its own, and neither teaches the other."""

from concurrent.futures import ThreadPoolExecutor

from plaudit.client import Plaudit
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.types import Channel

from .conftest import PROMPTS

WORDY, TERSE = "wordy", "terse"  # Whose people like spaces, and whose people dislike them.
ASKED = 100


def spaces(target, tenant, seed):
    """Spaces in an answer to a question of the channel's kind that nobody has asked, and the release that gave it."""
    with Plaudit(target) as client:
        reply = client.generate(
            "instruction", f"list {PROMPTS + seed} kinds of tea", tenant=tenant, seed=seed, max_tokens=8
        )
    return reply.text.count(" "), reply.completions[0].release_version


def test_opposite_tastes_are_served_at_once_and_never_teach_each_other(settings_of_tenants, learner_of, served):
    settings = settings_of_tenants(**{WORDY: 1, TERSE: -1})
    channels = {tenant: Channel("instruction", tenant) for tenant in (WORDY, TERSE)}
    learner = learner_of(settings)
    with served(settings) as server:
        before = sum(spaces(server.target, WORDY, seed)[0] for seed in range(ASKED)) / ASKED
    for channel in channels.values():
        result = look(learner, channel, Watch())
        assert result.outcome is TurnOutcome.PROMOTED, result.reason

    # Both releases in one engine, their requests mixed in one batch.
    with served(settings) as server, ThreadPoolExecutor(8) as pool:
        asked = [(server.target, tenant, seed) for seed in range(ASKED) for tenant in channels]
        answers = list(pool.map(lambda each: spaces(*each), asked))
    means = {
        tenant: sum(count for (_, who, _), (count, _) in zip(asked, answers, strict=True) if who == tenant) / ASKED
        for tenant in channels
    }
    assert {version for _, version in answers} == {1}
    # The base answers nearly as WORDY's people like it, so their release is held against the other one's.
    assert means[WORDY] > means[TERSE] + 0.25, (means, before)
    assert means[TERSE] < before - 0.25, (means, before)

    # Each adapter names evidence of its own tenant, and of no other.
    store, frozen = EvidenceStore(settings.store_url), {}
    for tenant, channel in channels.items():
        frozen[tenant] = store.freeze(channel, learner.registry.salt(channel))
        assert learner.registry.manifest(channel, 1).evidence_digest == frozen[tenant].digest
        assert {each.channel for each in frozen[tenant].interactions.values()} == {channel}
    store.close()
    assert not set(frozen[WORDY].interactions) & set(frozen[TERSE].interactions)
    # A pseudonym is of one tenant: the same person is nobody known to the other.
    assert not {row.who for row in frozen[WORDY].rows} & {row.who for row in frozen[TERSE].rows}
