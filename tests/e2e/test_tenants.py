"""Tenants with opposite tastes on one base at the same time: each is served its own, and neither teaches the other."""

import json
from concurrent.futures import ThreadPoolExecutor

from plaudit.client import Plaudit
from plaudit.evidence.store import EvidenceStore
from plaudit.learner.look import Watch, look
from plaudit.learner.outcome import TurnOutcome
from plaudit.types import Channel

from .conftest import PROMPTS

WORDY, TERSE = "wordy", "terse"  # Whose people like spaces, and whose people dislike them.
ASKED = 100


def answer(target, tenant, seed):
    """An answer to a question of the channel's kind that nobody has asked, and the digest of its release."""
    with Plaudit(target) as client:
        reply = client.generate(
            "instruction", f"list {PROMPTS + seed} kinds of tea", tenant=tenant, seed=seed, max_tokens=8
        )
    return reply.text, reply.completions[0].release_digest


def spaces(texts):
    """Spaces per text."""
    return sum(text.count(" ") for text in texts) / len(texts)


def test_opposite_tastes_are_served_at_once_and_never_teach_each_other(settings_of_tenants, learner_of, served):
    settings = settings_of_tenants(**{WORDY: 1, TERSE: -1})
    channels = {tenant: Channel("instruction", tenant) for tenant in (WORDY, TERSE)}
    learner = learner_of(settings)
    with served(settings) as server:
        base = [answer(server.target, WORDY, seed)[0] for seed in range(ASKED)]
    releases = {}
    for tenant, channel in channels.items():
        result = look(learner, channel, Watch())
        assert result.outcome is TurnOutcome.PROMOTED, result.reason
        releases[tenant] = learner.registry.release(channel, 1)
        checks = {check["name"]: check for check in json.loads(releases[tenant].decision_json)["checks"]}
        # The judges are raters of this tenant, who taught nothing.
        assert checks["win_base"]["low"] > 0.5, tenant

    # Both releases in one engine, their requests mixed in one batch.
    with served(settings) as server, ThreadPoolExecutor(8) as pool:
        asked = [(server.target, tenant, seed) for seed in range(ASKED) for tenant in channels]
        answers = list(pool.map(lambda each: answer(*each), asked))
    texts = {tenant: [] for tenant in channels}
    for (_, tenant, _), (text, digest) in zip(asked, answers, strict=True):
        assert digest == releases[tenant].digest
        texts[tenant].append(text)
    # The base says the same again to the same question and seed: a tenant that got it would have no other text.
    other = {tenant: sum(new != old for new, old in zip(texts[tenant], base, strict=True)) for tenant in channels}
    assert min(other.values()) > ASKED / 2, other
    # What WORDY's people like is what the base does nearly all the time, so their release is held against the other's.
    means = {"base": spaces(base), **{tenant: spaces(texts[tenant]) for tenant in channels}}
    assert means[WORDY] > means[TERSE] + 0.25, means
    assert means[TERSE] < means["base"] - 0.25, means

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
