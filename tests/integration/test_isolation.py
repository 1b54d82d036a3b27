"""A plugin that hangs fails its own requests and acts, in time and by name; other domains of the process go on."""

import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from plaudit.client import Begun, Delta, Plaudit
from plaudit.errors import PluginFailed
from plaudit.eventlog import Topic
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.metrics import Metrics
from plaudit.plugins import count_failures, guard
from plaudit.settings import JoinSettings
from plaudit.testing.serving import local_server, serve_settings
from plaudit.testing.waiting import wait_until
from plaudit.types import Binary, Channel, FinishReason, Pair, PairOutcome
from plaudit_echo.plugin import Echo
from prometheus_client import CollectorRegistry

BUDGET = 1.0  # seconds: a busy machine hands a call that is quick over and back within a part of it
CALLERS = 16


class Hangs(Echo):
    """The echo domain as `hangs`; the members of `hanging` come back once `gate` opens."""

    def __init__(self, hanging, gate):
        self.hanging, self.gate = hanging, gate

    @property
    def declaration(self):
        return dataclasses.replace(super().declaration, name="hangs")

    def render(self, request):
        return self._after("render", super().render(request))

    def parse(self, prompt, output):
        return self._after("parse", super().parse(prompt, output))

    def to_evidence(self, interaction, feedback):
        return self._after("to_evidence", super().to_evidence(interaction, feedback))

    def _after(self, member, result):
        if member in self.hanging:
            self.gate.wait()
        return result


@pytest.fixture
def gate():
    gate = threading.Event()
    yield gate
    gate.set()


def read(stream, events):
    for event in stream:
        events.append(event)


def answered(client):
    """Whether the domain answers; its first calls after many late ones have little time on a busy machine."""
    for _ in range(100):
        with contextlib.suppress(PluginFailed):
            return client.generate("hangs", "tea?", max_tokens=2).interaction_id
    return ""


def failures(metrics, member, why):
    labels = {"domain": "hangs", "member": member, "why": why}
    return metrics.registry.get_sample_value("plaudit_plugin_failures_total", labels) or 0


@pytest.mark.parametrize("member", ["render", "parse"])
def test_a_domain_that_hangs_leaves_the_other_domains_of_its_server_alone(tmp_path, tiny_engine, gate, member):
    hangs = Hangs({member}, gate)
    plugins = {**guard([Echo()]), **guard([hangs], budget_seconds=BUDGET)}
    settings = serve_settings(tmp_path / "data", workers=CALLERS + 4)
    with (
        local_server(settings.data_dir, tiny_engine, plugins, settings=settings) as server,
        Plaudit(server.target, patience=0.0, timeout=60.0) as client,
        ThreadPoolExecutor(CALLERS) as callers,
    ):

        def ask(_):
            with pytest.raises(PluginFailed) as caught:
                client.generate("hangs", "tea?", max_tokens=2)
            return caught.value

        asked = callers.map(ask, range(3 * CALLERS))
        for _ in range(5):
            assert client.generate("echo", "tea?", max_tokens=2).interaction_id
        errors = list(asked)
        assert {error.code for error in errors} == {"INTERNAL"}
        assert {error.metadata["domain"] for error in errors} == {"hangs"}
        assert {error.metadata["why"] for error in errors} == {"late", "hangs"}
        assert {error.metadata["member"] for error in errors if error.metadata["why"] == "late"} == {member}
        # From now on nobody waits for it: a refusal takes no thread, no slot of the engine and no time.
        plugins["hangs"]._calls._seconds = 1e6  # whoever waited for it would not come back
        assert [ask(None).metadata["why"] for _ in range(20)] == ["hangs"] * 20
        plugins["hangs"]._calls._seconds = BUDGET
        assert client.generate("echo", "tea?", max_tokens=2).interaction_id
        # While it hangs, no member of it is called: the first one that a request needs is what it fails by.
        told = [
            failures(server.metrics, *labels) for labels in {(member, "late"), (member, "hangs"), ("render", "hangs")}
        ]
        assert sum(told) == 3 * CALLERS + 20
        assert tiny_engine.load() == (0, 0), "a request that failed holds nothing in the engine"
        # A domain that comes back is served again, without a restart.
        gate.set()
        wait_until(lambda: not plugins["hangs"].hanging)
        assert answered(client)
        domains = {record.channel.domain for record in server.records(Topic.INTERACTIONS)}
    assert domains == {"echo", "hangs"}


def test_a_stream_whose_text_cannot_be_parsed_is_recorded_as_what_people_read(tmp_path, tiny_engine, gate):
    hangs = Hangs({"parse"}, gate)
    with (
        local_server(tmp_path / "data", tiny_engine, guard([hangs], budget_seconds=BUDGET)) as server,
        Plaudit(server.target, patience=0.0, timeout=60.0) as client,
    ):
        events = []
        with pytest.raises(PluginFailed):
            read(client.stream("hangs", "tea?", max_tokens=6), events)
        begun, *deltas = events
        assert isinstance(begun, Begun)
        assert all(isinstance(each, Delta) for each in deltas)
        client.feedback_from_handle(begun.handle, begun.candidate_ids).thumbs_down(0)
        (record,) = server.records(Topic.INTERACTIONS)
    assert record.interaction_id == begun.interaction_id
    (candidate,) = record.candidates
    assert (candidate.displayed_text, candidate.valid) == ("".join(each.text for each in deltas), False)
    assert candidate.finish_reason in (FinishReason.EOS, FinishReason.LENGTH, FinishReason.CANCELLED)


def test_evidence_with_a_number_that_nothing_can_store_is_rejected_and_the_join_goes_on(tmp_path, tiny_engine):
    class Enormous(Echo):
        @property
        def declaration(self):
            return dataclasses.replace(super().declaration, name="enormous")

        def to_evidence(self, interaction, feedback):
            ids = [candidate.candidate_id for candidate in interaction.candidates]
            return [Pair(first=ids[0], second=ids[1], outcome=PairOutcome.FIRST, margin=10**400)]

    plugins = guard([Echo(), Enormous()])
    with (
        local_server(tmp_path / "data", tiny_engine, plugins) as server,
        Plaudit(server.target, patience=0.0, timeout=60.0) as client,
    ):
        for domain in ("enormous", "echo"):
            client.generate(domain, "tea?", n=2, max_tokens=2).thumbs_up(0)
        store = EvidenceStore(server.settings.store_url)
        join = Join(server.log, store, plugins, JoinSettings())
        while join.run_once(0.1):
            pass
        counts = {domain: store.counts(Channel(domain, "default")) for domain in ("enormous", "echo")}
        join.close()
        store.close()
        assert {name: (each.joined, each.rejected) for name, each in counts.items()} == {
            "enormous": (0, 1),
            "echo": (1, 0),
        }


def test_acts_whose_evidence_never_comes_are_rejected_and_the_join_goes_on(tmp_path, tiny_engine, gate):
    hangs = Hangs({"to_evidence"}, gate)
    plugins = {**guard([Echo()]), **guard([hangs], budget_seconds=BUDGET)}
    with (
        local_server(tmp_path / "data", tiny_engine, plugins) as server,
        Plaudit(server.target, patience=0.0, timeout=60.0) as client,
    ):
        for domain in ("hangs",) * 12 + ("echo",) * 3:
            client.generate(domain, "tea?", max_tokens=2).thumbs_up()
        metrics = Metrics(CollectorRegistry())
        count_failures(plugins, metrics)
        store = EvidenceStore(server.settings.store_url)
        join = Join(server.log, store, plugins, JoinSettings())
        while join.run_once(0.1):
            pass
        echo, hung = (store.freeze(Channel(domain, "default"), b"salt") for domain in ("echo", "hangs"))
        counts = store.counts(Channel("hangs", "default"))
        assert [type(row.evidence) for row in echo.rows] == [Binary] * 3
        assert (hung.rows, counts.rejected, counts.joined) == ((), 12, 0)
        assert (failures(metrics, "to_evidence", "late"), failures(metrics, "to_evidence", "hangs")) == (8, 4)
        rejected = server.records(Topic.REJECTED)
        assert {record.reason for record in rejected} == {"PLUGIN_FAILED"}
        join.close()
        # Nothing is lost: once the plugin is mended, the next start of the join takes all of it up again.
        gate.set()
        mended = Join(server.log, store, guard([Echo(), hangs], budget_seconds=60.0), JoinSettings())
        while mended.run_once(0.1):
            pass
        assert len(store.freeze(Channel("hangs", "default"), b"salt").rows) == 12
        mended.close()
        store.close()
