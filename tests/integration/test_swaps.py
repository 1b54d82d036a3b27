"""Releases change under running streams, and nobody notices but by the answers."""

import threading

from plaudit.client import Plaudit
from plaudit.engine.protocol import Job, ReleaseKey
from plaudit.eventlog import Topic
from plaudit.testing.waiting import wait_until
from plaudit.types import Channel, Purpose

CHANNEL = Channel("echo", "default")
STREAMS = 6
SWAPS = 30


def test_no_stream_fails_or_changes_while_releases_are_swapped(local, make_release):
    rows = [make_release(local.registry, CHANNEL, seed) for seed in (1, 2)]
    digests = {0: local.registry.release(CHANNEL, 0).digest, **{row.version: row.digest for row in rows}}
    done, failures, replies = threading.Event(), [], []

    def ask(worker):
        with Plaudit(local.target, patience=0.0, timeout=300.0) as client:
            seed = worker * 1000
            while not done.is_set():
                try:
                    *_, reply = client.stream("echo", f"Question {seed}", n=2, max_tokens=24, seed=seed)
                    replies.append(reply)
                except Exception as error:
                    failures.append(error)
                seed += 2

    def answered():
        return {completion.release_version for reply in list(replies) for completion in reply.completions}

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in range(STREAMS)]
    for thread in threads:
        thread.start()
    with Plaudit(local.target, timeout=300.0) as operator:
        for index in range(SWAPS):
            version = rows[index % 2].version
            operator.promote(str(CHANNEL), version)
            wait_until(lambda version=version: local.server.router.serving()[CHANNEL].version == version)
            if index >= SWAPS - len(rows):
                # Swaps may outrun streams; the last ones wait until each release has answered.
                wait_until(lambda version=version: version in answered())
    done.set()
    for thread in threads:
        thread.join(300)
    assert failures == []
    assert {row.version for row in rows} <= answered()
    assert all(digests[c.release_version] == c.release_digest for reply in replies for c in reply.completions)
    assert altered(local) == []


def altered(local):
    """Interactions whose tokens differ from a replay of what was recorded, on the idle engine."""
    found = []
    for interaction in local.records(Topic.INTERACTIONS):
        for candidate in interaction.candidates:
            key = ReleaseKey(str(interaction.channel), candidate.release_version, candidate.release_digest)
            if key not in local.engine.staged():
                continue
            job = Job(
                prompt=local.engine.encode(interaction.messages),
                release=key,
                sampling=candidate.sampling,
                seed=candidate.seed,
                width=candidate.width,
            )
            assert job.prompt.tokens == interaction.prompt_tokens
            (ticket,) = local.engine.submit([job])
            if ticket.result(300.0).tokens != candidate.tokens:
                found.append((interaction.interaction_id, candidate.candidate_id))
    return found


def test_each_completion_may_name_its_release_and_keeps_it(local, client, make_release):
    row = make_release(local.registry, CHANNEL, 7)
    wanted = {"n": 2, "seed": 4, "max_tokens": 8, "token_ids": True}
    reply = client.generate("echo", "Hello", **wanted, release_versions=[0, row.version], purpose=Purpose.EVALUATE)
    assert [c.release_version for c in reply.completions] == [0, row.version]
    both = client.generate("echo", "Hello", **wanted, release_versions=[row.version])
    assert {c.release_version for c in both.completions} == {row.version}
    # The same prompt, seed and release give the same tokens, whoever else is in the batch.
    assert both.completions[1].token_ids == reply.completions[1].token_ids != ()
