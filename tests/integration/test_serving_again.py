"""Requests that are sent again, and streams that are stopped: feedback lands on what its rater saw, or nowhere."""

import contextlib
import uuid

import pytest
from plaudit.client import Plaudit
from plaudit.errors import DeadlinePassed, IdConflict
from plaudit.eventlog import Topic
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import load_plugins
from plaudit.settings import JoinSettings
from plaudit.testing.evidence import join_all
from plaudit.testing.serving import local_server, serve_settings
from plaudit.testing.waiting import wait_until
from plaudit.types import FinishReason, Purpose

HELLO = "Say hello."


class World:
    """Servers that start one after the other on one data directory, and the join behind them."""

    def __init__(self, folder, engine):
        self.folder, self.engine = folder, engine

    @contextlib.contextmanager
    def serve(self, **serve):
        plugins = load_plugins(("echo", "echo-choice"))
        settings = serve_settings(self.folder, **serve)
        with (
            local_server(self.folder, self.engine, plugins, settings=settings) as local,
            Plaudit(local.target, patience=0.0, timeout=30.0) as client,
        ):
            yield local, client

    def join(self, log):
        """Evidence by kind, and the reasons of what was rejected."""
        store = EvidenceStore(f"sqlite:///{self.folder / 'joined.sqlite'}")
        join = Join(log, store, load_plugins(("echo",)), JoinSettings(poll_seconds=0.01))
        join_all(join)
        join.close()
        evidence = [row.evidence for channel in store.channels() for row in store.freeze(channel, b"salt").rows]
        store.close()
        return evidence


class BlindLog:
    """An event log that cannot look records up, as Kafka cannot."""

    def __init__(self, log):
        self._log = log

    def __getattr__(self, name):
        return getattr(self._log, name)

    def find(self, topic, key, most):
        return None


@pytest.fixture
def world(tmp_path, tiny_engine):
    return World(tmp_path / "data", tiny_engine)


@pytest.mark.parametrize("remembered_mb", [32, 0], ids=["from memory", "from the log"])
def test_a_request_sent_again_gets_the_recorded_answer_across_restarts(world, remembered_mb):
    asked = {"n": 2, "interaction_id": str(uuid.uuid4()), "max_tokens": 6, "rater": "ana"}
    with world.serve(remembered_mb=remembered_mb) as (local, client):
        # Greedy and hot: only the record can give the same text.
        first = client.generate("echo", HELLO, seed=1, temperature=2.0, **asked)
        again = client.generate("echo", HELLO, seed=2, temperature=0.0, **asked)
        assert (again.completions, again.handle) == (first.completions, first.handle)
        assert len(local.records(Topic.INTERACTIONS)) == 1
    with world.serve(remembered_mb=remembered_mb) as (local, client):
        later = client.generate("echo", HELLO, seed=3, **asked)
        assert (later.completions, later.handle) == (first.completions, first.handle)
        begun, *deltas, done = client.stream("echo", HELLO, seed=4, **asked)
        assert (begun.handle, done.completions) == (first.handle, first.completions)
        assert {delta.index for delta in deltas} <= {0, 1}
        assert len(local.records(Topic.INTERACTIONS)) == 1


def test_a_choice_sent_again_gets_the_recorded_order(world):
    asked = {"interaction_id": str(uuid.uuid4()), "purpose": Purpose.EXPLORE}
    with world.serve() as (local, client):
        first = client.choose("echo-choice", HELLO, ["a", "b", "c"], **asked)
        assert client.choose("echo-choice", HELLO, ["a", "b", "c"], **asked).ranking == first.ranking
        assert len(local.records(Topic.INTERACTIONS)) == 1
        with pytest.raises(IdConflict):
            client.choose("echo-choice", HELLO, ["a", "b"], **asked)


@pytest.mark.parametrize(
    "other", [{"prompt": "Another?"}, {"rater": "bo"}, {"n": 2}, {"tenant": "t"}, {"purpose": Purpose.EVALUATE}]
)
def test_another_request_under_a_used_id_is_refused(world, other):
    asked = {"prompt": HELLO, "interaction_id": str(uuid.uuid4()), "max_tokens": 2}
    with world.serve() as (local, client):
        client.generate("echo", **asked)
        with pytest.raises(IdConflict, match="was used for another request"):
            client.generate("echo", **asked | other)
        assert len(local.records(Topic.INTERACTIONS)) == 1


def test_a_stopped_stream_is_recorded_with_what_went_out_and_may_be_rated(world, stands):
    with world.serve() as (local, client), stands(local.engine, after=60):
        stream = client.stream("echo", HELLO, max_tokens=450, seed=1, rater="ana")
        begun, went_out = next(stream), ""
        while len(went_out) < 20:
            went_out += next(stream).text
        stream.close()
        begun.thumbs_down(rater="ana")
        (recorded,) = wait_until(lambda: local.records(Topic.INTERACTIONS))
        (candidate,) = recorded.candidates
        assert candidate.finish_reason is FinishReason.CANCELLED
        assert candidate.displayed_text.startswith(went_out)
        assert candidate.candidate_id == begun.candidate_ids[0]
        assert candidate.displayed_text in local.engine.decode(candidate.tokens)
        assert len(candidate.logprobs_raw) == len(candidate.logprobs_sampled) == len(candidate.tokens)
        (evidence,) = wait_until(lambda: world.join(local.log))
        assert (evidence.candidate, evidence.positive) == (candidate.candidate_id, False)


def test_a_deadline_within_a_stream_is_a_stop_too(world, stands):
    with world.serve() as (local, client):
        # Behind the first texts the engine stands still. On a slow machine a deadline may pass before it gets there.
        for seconds in (1, 4, 16, 64):
            with stands(local.engine, after=20), contextlib.suppress(DeadlinePassed):
                list(client.stream("echo", HELLO, max_tokens=450, n=8, seed=1, timeout=seconds))
            wait_until(lambda: local.engine.load() == (0, 0))
            wait_until(lambda: local.metrics.requests_in_flight._value.get() == 0)
            if stopped := [r for r in local.records(Topic.INTERACTIONS) if ended_by_deadline(r)]:
                break
        assert any(candidate.displayed_text for candidate in stopped[0].candidates)


def ended_by_deadline(interaction):
    return FinishReason.CANCELLED in {candidate.finish_reason for candidate in interaction.candidates}


def test_the_handle_of_a_whole_streams_first_message_counts_as_the_last_ones(world):
    with world.serve() as (local, client):
        begun, *_, done = client.stream("echo", HELLO, max_tokens=4, n=2)
        begun.thumbs_up(0, rater="ana")
        done.thumbs_up(1, rater="ana")
        assert [row.candidate for row in world.join(local.log)] == list(done.candidate_ids)


def test_feedback_never_lands_on_a_text_that_its_rater_did_not_see(world, monkeypatch):
    """A log that cannot look up, a replica that forgot: the request is answered twice, and the texts differ."""
    monkeypatch.setattr("plaudit.testing.serving.open_log", lambda settings: BlindLog(open_log(settings)))
    from plaudit.eventlog import open_log

    asked = {"interaction_id": str(uuid.uuid4()), "max_tokens": 6}
    with world.serve(remembered_mb=0) as (local, client):
        first = client.generate("echo", HELLO, seed=1, **asked)
        same = client.generate("echo", HELLO, seed=1, **asked)
        other = client.generate("echo", HELLO, seed=2, **asked)
        begun, *_ = client.stream("echo", HELLO, seed=3, **asked)
        assert first.text == same.text != other.text
        same.thumbs_up(rater="ana")
        other.thumbs_down(rater="bo")
        begun.thumbs_down(rater="cy")
        (evidence,) = wait_until(lambda: world.join(local.log))
        assert evidence.positive
        reasons = sorted(rejected.reason for rejected in local.records(Topic.REJECTED))
        assert reasons == ["ANOTHER_ANSWER", "ANOTHER_ANSWER"]
