"""What of people's data reaches the log, over a real server."""

import contextlib
import json
import re
import time
import uuid

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from plaudit.client import Plaudit
from plaudit.errors import NotStored, PluginFailed, UnknownErasure
from plaudit.eventlog import Topic
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.metrics import Metrics
from plaudit.plugins import load_plugins
from plaudit.privacy.sweep import Sweep
from plaudit.settings import ChannelSettings, JoinSettings, PrivacySettings
from plaudit.testing.evidence import join_all
from plaudit.testing.serving import local_server, serve_settings
from plaudit.types import Channel, Consent, Message
from plaudit.v1 import privacy_pb2, privacy_pb2_grpc
from plaudit.wire import from_call
from prometheus_client import CollectorRegistry

MAIL, CARD = "ana.secret@example.org", "4111 1111 1111 1111"
TEXT = f"Write to {MAIL} about card {CARD}."


@contextlib.contextmanager
def redacting(folder, engine, **settings):
    plugins = load_plugins(("echo", "echo-choice", "instruction"))
    wanted = serve_settings(folder).model_copy(update=settings)
    with (
        local_server(folder, engine, plugins, settings=wanted) as server,
        Plaudit(server.target, patience=0.0, timeout=30.0) as client,
    ):
        yield server, client


def on_disk(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_what_a_channel_redacts_is_nowhere_and_the_model_reads_what_the_log_holds(tmp_path, tiny_engine):
    every = PrivacySettings(redact=("email", "card"))
    with redacting(tmp_path, tiny_engine, privacy=every) as (server, client):
        ask = {"interaction_id": str(uuid.uuid4()), "max_tokens": 4, "seed": 1}
        reply = client.generate("echo", TEXT, **ask)
        again = client.generate("echo", TEXT, **ask)
        assert (again.candidate_ids, again.handle) == (reply.candidate_ids, reply.handle)
        clean = client.generate("echo", "Write to [EMAIL] about card [CARD].", max_tokens=4, seed=1)
        assert clean.completions[0].token_ids == reply.completions[0].token_ids
        asked = client.generate("instruction", TEXT, max_tokens=4)
        asked.correct(f"Dear {MAIL}", rater="ana")
        streamed = [*client.stream("echo", [Message("system", MAIL), Message("user", TEXT)], max_tokens=2)]
        assert streamed
        client.choose("echo-choice", TEXT, ["yes", "no"])
        recorded = server.records(Topic.INTERACTIONS)[0]
        assert recorded.messages == (Message("user", "Write to [EMAIL] about card [CARD]."),)
        assert server.engine.encode(recorded.messages).tokens == recorded.prompt_tokens
        (act,) = server.records(Topic.FEEDBACK)
        assert act.act.text == "Dear [EMAIL]"
        assert server.metrics.redactions.labels("email")._value.get() >= 5
    content = on_disk(tmp_path)
    assert content
    # No shorter piece: ids and digests are full of digits, and would hold four of these by chance.
    for secret in (MAIL, CARD, re.sub(r"\D", "", CARD)):
        assert secret.encode() not in content


def test_a_recogniser_of_another_distribution_finds_names_before_anything_reads_them(
    tmp_path, tiny_engine, monkeypatch
):
    site = tmp_path / "site"
    (site / "people-1.dist-info").mkdir(parents=True)
    (site / "people-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: people\nVersion: 1\n")
    announced = "[plaudit.recognisers]\npeople = people_of_test:People\n"
    (site / "people-1.dist-info" / "entry_points.txt").write_text(announced)
    (site / "people_of_test.py").write_text(
        "class People:\n"
        "    def find(self, text):\n"
        "        at = text.find('Ana Ruiz')\n"
        "        return [(at, at + 8, 'person')] if at >= 0 else 1 / ('fail' not in text) and []\n"
    )
    monkeypatch.syspath_prepend(str(site))
    data = tmp_path / "data"
    with redacting(data, tiny_engine, privacy=PrivacySettings(recognisers=("people",))) as (server, client):
        asked = client.generate("instruction", "Dear Ana Ruiz,", max_tokens=2)
        asked.correct("Yours, Ana Ruiz", rater="ana")
        assert server.records(Topic.INTERACTIONS)[0].messages == (Message("user", "Dear [PERSON],"),)
        assert server.records(Topic.FEEDBACK)[0].act.text == "Yours, [PERSON]"
        with pytest.raises(PluginFailed, match="recogniser people"):
            client.generate("instruction", "fail", max_tokens=2)
        assert len(server.records(Topic.INTERACTIONS)) == 1
    assert b"Ana Ruiz" not in on_disk(data)


def test_another_channel_keeps_what_it_is_not_told_to_redact(tmp_path, tiny_engine):
    channels = {"echo/acme": ChannelSettings(privacy=PrivacySettings(redact=("email",)))}
    with redacting(tmp_path, tiny_engine, channels=channels) as (server, client):
        client.generate("echo", TEXT, tenant="acme", max_tokens=1)
        client.generate("echo", TEXT, tenant="other", max_tokens=1)
        first, second = (record.messages[0].content for record in server.records(Topic.INTERACTIONS))
    assert first == f"Write to [EMAIL] about card {CARD}."
    assert second == TEXT


def test_an_answer_that_may_not_be_kept_is_served_and_leaves_no_text(tmp_path, tiny_engine):
    with redacting(tmp_path, tiny_engine) as (server, client):
        ask = {"max_tokens": 4, "seed": 1, "end_user": "ana", "interaction_id": str(uuid.uuid4())}
        reply = client.generate("echo", TEXT, store=False, **ask)
        again = client.generate("echo", TEXT, store=False, **ask)
        assert reply.completions[0].text
        assert again.completions[0].token_ids == reply.completions[0].token_ids
        with pytest.raises(NotStored):
            reply.thumbs_up()
        client.choose("echo-choice", TEXT, ["yes", "no"], store=False)
        assert [*client.stream("echo", TEXT, max_tokens=2, store=False)]
        records = server.records(Topic.INTERACTIONS)
        assert {(each.consent.store, each.messages, each.end_user) for each in records} == {(False, (), "")}
        assert records[0].candidates[0].release_digest
        withheld = server.metrics.consent_withheld.labels("echo/default", "storage")._value.get()
        assert withheld == 3
    for secret in (MAIL, CARD):
        assert secret.encode() not in on_disk(tmp_path)


def test_a_channel_asks_for_consent_and_a_request_gives_it(tmp_path, tiny_engine):
    channels = {"echo/acme": ChannelSettings(privacy=PrivacySettings(train=False))}
    with redacting(tmp_path, tiny_engine, channels=channels) as (server, client):
        for consent in ({}, {"train": True}, {"store": False, "train": True}):
            client.generate("echo", "Hello", tenant="acme", max_tokens=1, **consent)
        client.generate("echo", "Hello", tenant="other", max_tokens=1).thumbs_up()
        found = [each.consent for each in server.records(Topic.INTERACTIONS)]
    assert found == [Consent(train=False), Consent(), Consent(store=False), Consent()]


def test_an_operator_erases_a_person_while_the_service_runs(tmp_path, tiny_engine):
    with redacting(tmp_path, tiny_engine) as (server, client), grpc.insecure_channel(server.target) as channel:
        stub = privacy_pb2_grpc.PrivacyServiceStub(channel)
        ask = {"max_tokens": 4, "interaction_id": str(uuid.uuid4()), "end_user": "ana"}
        first = client.generate("echo", TEXT, seed=1, **ask)
        first.thumbs_up(rater="bob")
        client.generate("echo", "Hello from bob", max_tokens=1, end_user="bob")
        plugins = load_plugins(("echo",))
        store = EvidenceStore(server.settings.store_url)
        join = Join(server.log, store, plugins, JoinSettings())
        sweep = Sweep(server.settings, Metrics(CollectorRegistry()), server.log)
        asked = privacy_pb2.ErasePersonRequest(tenant="default", person="ana")
        erasure_id = stub.ErasePerson(asked, timeout=300).erasure_id
        join_all(join)
        sweep.look()
        named = privacy_pb2.GetErasureReceiptRequest(erasure_id=erasure_id)
        receipt = stub.GetErasureReceipt(named, timeout=300)
        assert receipt.state == privacy_pb2.ERASURE_STATE_DONE
        assert json.loads(receipt.receipt_json)["deleted"] == {"log_records": 2}  # the join had read nothing
        key = Ed25519PublicKey.from_public_bytes(receipt.public_key)
        key.verify(receipt.signature, receipt.receipt_json.encode())
        # No replica remembers the answer either: sent again, the request is answered and recorded anew. (Its handle may
        # be equal to the first one: the same text in the same second.)
        assert len(server.records(Topic.INTERACTIONS)) == 1
        deadline = time.monotonic() + 300
        while len(server.records(Topic.INTERACTIONS)) == 1:
            assert time.monotonic() < deadline, "the replica answers from its memory still"
            client.generate("echo", TEXT, seed=1, **ask)
            time.sleep(0.1)
        assert server.records(Topic.FEEDBACK) == []
        assert store.counts(Channel("echo", "default")).interactions == 1
        for each in (join, sweep, store):
            each.close()
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetErasureReceipt(privacy_pb2.GetErasureReceiptRequest(erasure_id=str(uuid.uuid4())), timeout=300)
        assert isinstance(from_call(caught.value), UnknownErasure)
