"""What a backend expects: lists in pages, what a domain takes, typed reports, field errors, log-probs, tags."""

import asyncio
import hashlib
import json
import math
import uuid

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from plaudit.client import AsyncPlaudit, Begun, Reply, drafts
from plaudit.errors import IdConflict, InvalidField, InvalidText
from plaudit.eventlog import Topic
from plaudit.plugins import load_plugins
from plaudit.types import Channel, FeedbackKind
from plaudit.v1 import assistant_pb2, assistant_pb2_grpc, domains_pb2, domains_pb2_grpc, releases_pb2, releases_pb2_grpc

HELLO = "Say hello."


@pytest.fixture
def channel(local):
    with grpc.insecure_channel(local.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield channel


def test_log_probs_and_token_ids_come_only_if_they_are_asked_for(local, client):
    plain = client.generate("echo", HELLO, n=2, max_tokens=8, seed=3).completions
    assert all(not each.logprobs and not each.token_ids for each in plain)
    asked = client.generate("echo", HELLO, n=2, max_tokens=8, seed=3, logprobs=True, token_ids=True)
    recorded = local.records(Topic.INTERACTIONS)[-1]
    for each, candidate in zip(asked.completions, recorded.candidates, strict=True):
        assert each.token_ids == candidate.tokens
        assert len(each.logprobs) == each.tokens
        assert "".join(token.text for token in each.logprobs) == candidate.text
        assert math.isclose(math.fsum(token.logprob for token in each.logprobs), each.logprob_raw, rel_tol=1e-6)
    assert asked.prompt_tokens == len(recorded.prompt_tokens)
    assert asked.completion_tokens == sum(len(candidate.tokens) for candidate in recorded.candidates)


def test_log_probs_stop_where_the_text_does(local, client):
    first = client.generate("echo", HELLO, max_tokens=12, seed=5)
    (middle,) = [each.text for each in local.records(Topic.INTERACTIONS)[-1].candidates]
    stop = middle.strip()[3:5]
    cut = client.generate("echo", HELLO, max_tokens=12, seed=5, stop=[stop], logprobs=True).completions[0]
    written = local.records(Topic.INTERACTIONS)[-1].candidates[0].text
    assert len(written) < len(first.text)
    assert "".join(token.text for token in cut.logprobs) == written


def test_the_same_request_under_other_tags_is_another_request(client):
    asked = {"max_tokens": 2, "interaction_id": str(uuid.uuid4())}
    first, again = (client.generate("echo", HELLO, tags={"page": "a"}, **asked) for _ in range(2))
    assert first.text == again.text
    with pytest.raises(IdConflict):
        client.generate("echo", HELLO, tags={"page": "b"}, **asked)


def test_tags_are_recorded_and_bounded_and_never_repeated_in_an_error(local, client):
    tags = {"page": "checkout", "experiment.arm": "b" * 512}
    reply = client.generate("echo", HELLO, max_tokens=2, tags=tags)
    reply.thumbs_up(rater="ana", tags={"button": "footer"})
    assert dict(local.records(Topic.INTERACTIONS)[-1].tags) == tags
    assert dict(local.records(Topic.FEEDBACK)[-1].tags) == {"button": "footer"}
    wrong = (
        ({f"k{i}": "v" for i in range(17)}, InvalidField),
        ({"a secret of Ada": "v"}, InvalidField),
        ({"": "v"}, InvalidField),
        ({"k": "Ada" * 200}, InvalidField),
        ({"k": "Ada\0"}, InvalidText),
    )
    for each, error in wrong:
        for call in (lambda t: client.generate("echo", HELLO, tags=t), lambda t: reply.thumbs_up(tags=t)):
            with pytest.raises(error) as caught:
                call(each)
            assert "Ada" not in caught.value.message


def test_a_user_interface_draws_its_buttons_from_what_domains_declare(client, channel):
    declared = {name: plugin.declaration for name, plugin in load_plugins(("echo", "echo-choice")).items()}
    domains = client.domains()
    assert [domain.name for domain in domains] == ["echo", "echo-choice"]
    for domain in domains:
        expected = declared[domain.name]
        assert set(domain.kinds) == {str(kind) for kind in expected.kinds} <= {str(kind) for kind in FeedbackKind}
        assert set(domain.reasons) == expected.reasons
        assert set(domain.labels) == expected.labels
        assert domain.signals == expected.signals
        assert domain.action is expected.action
        assert (domain.rating_scale is not None) == (FeedbackKind.RATING in expected.kinds)
        assert domain.places == len(expected.place_weights)
    stub = domains_pb2_grpc.DomainServiceStub(channel)
    first = stub.ListDomains(domains_pb2.ListDomainsRequest(page_size=1))
    second = stub.ListDomains(domains_pb2.ListDomainsRequest(page_size=1, page_token=first.next_page_token))
    assert [each.name for page in (first, second) for each in page.domains] == ["echo", "echo-choice"]
    assert not second.next_page_token


def test_lists_come_in_pages_that_hold_their_place(local, client, channel, make_release):
    for tenant in ("c", "a", "b"):
        client.generate("echo", HELLO, max_tokens=1, tenant=tenant)
    rows = [make_release(local.registry, Channel("echo", "a"), seed) for seed in range(3)]
    stub = releases_pb2_grpc.ReleaseServiceStub(channel)
    found, token = [], ""
    while True:
        page = stub.ListReleases(releases_pb2.ListReleasesRequest(channel="echo/a", page_size=2, page_token=token))
        found.append([release.version for release in page.releases])
        assert page.state.channel == "echo/a"
        if not (token := page.next_page_token):
            break
    assert found == [[0, 1], [2, 3]]
    first = stub.ListChannels(releases_pb2.ListChannelsRequest(page_size=2))
    client.generate("echo", HELLO, max_tokens=1, tenant="aa")  # comes between what was told
    rest = stub.ListChannels(releases_pb2.ListChannelsRequest(page_size=2, page_token=first.next_page_token))
    assert [[each.channel for each in page.channels] for page in (first, rest)] == [["echo/a", "echo/b"], ["echo/c"]]
    assert [str(state.channel) for state in client.channels()] == ["echo/a", "echo/aa", "echo/b", "echo/c"]
    assert [row.version for row in client.releases("echo/a")[1]] == [0, *(row.version for row in rows)]
    for asked in (
        releases_pb2.ListChannelsRequest(page_size=1001),
        releases_pb2.ListChannelsRequest(page_token="%%%"),
        releases_pb2.ListChannelsRequest(page_token="x" * 513),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListChannels(asked)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListReleases(releases_pb2.ListReleasesRequest(channel="echo/a", page_token=first.next_page_token))
    assert "page_token" in caught.value.details()


def test_the_manifest_and_the_gates_report_are_typed_and_the_digested_text_is_as_it_was(local, client, make_release):
    row = make_release(local.registry, Channel("echo", "default"), 1)
    details = client.release("echo/default", row.version)
    stored = local.registry.manifest(Channel("echo", "default"), row.version)
    assert details.manifest_json == stored.to_json()
    assert hashlib.sha256(details.manifest_json.encode()).hexdigest() == row.digest
    assert details.manifest.adapter.digest == stored.adapter.digest
    assert details.manifest.temperature == stored.temperature
    assert details.manifest.probes == len(stored.probes) > 0
    assert details.manifest.created_at.ToDatetime() == stored.created_at.replace(tzinfo=None)
    assert dict(details.manifest.artifacts) == stored.artifacts
    assert not details.manifest.HasField("parent")
    assert details.gate.accepted
    assert not client.release("echo/default", 0).manifest.HasField("adapter")


def test_nobody_who_asks_is_told_the_salt_of_the_splits(local, client):
    client.generate("echo", HELLO, max_tokens=1)
    salt = local.registry.salt(Channel("echo", "default")).hex()
    details = client.release("echo/default", 0)
    assert "salt" not in json.loads(details.manifest_json)
    assert salt not in details.manifest_json + str(details.manifest)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (assistant_pb2.GenerateRequest(domain="echo"), "messages"),
        (assistant_pb2.GenerateRequest(domain="echo", n=9), "n"),
        (
            assistant_pb2.GenerateRequest(
                domain="echo", messages=[{"role": "user", "content": "x"}], tags={"a b": "c"}
            ),
            "tags",
        ),
        (assistant_pb2.GenerateRequest(domain="echo-choice", messages=[{"role": "user", "content": "x"}]), "domain"),
    ],
)
def test_a_wrong_field_is_named_as_a_violation_beside_the_reason(channel, asked, field):
    with pytest.raises(grpc.RpcError) as caught:
        assistant_pb2_grpc.AssistantServiceStub(channel).Generate(asked)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    first, second = rpc_status.from_call(caught.value).details
    assert first.Unpack(info)
    assert second.Unpack(bad)
    assert info.domain == "plaudit"
    (violation,) = bad.field_violations
    assert violation.field == field
    assert violation.description == caught.value.details()


def test_the_asynchronous_client_does_all_of_it(local, make_release):
    row = make_release(local.registry, Channel("echo", "default"), 1)

    async def talk():
        async with AsyncPlaudit(local.target, timeout=30.0) as client:
            assert [domain.name for domain in await client.domains()] == ["echo", "echo-choice"]
            assert [str(state.channel) for state in await client.channels()] == ["echo/default"]
            assert (await client.promote("echo/default", row.version)).live == row.version
            assert (await client.pin("echo/default")).pinned
            assert not (await client.pin("echo/default", False)).pinned
            assert (await client.roll_back("echo/default")).live == 0
            assert (await client.release("echo/default", row.version)).row.digest == row.digest
            async for state in client.watch("echo/default"):
                assert state.live == 0
                break
            reply = await client.generate("echo", HELLO, max_tokens=2)
            events = [event async for event in client.stream("echo", HELLO, max_tokens=2)]
            assert (type(events[0]), type(events[-1])) == (Begun, Reply)
            give = drafts(reply.handle, reply.candidate_ids)
            answers = [answer async for answer in client.submit_many([give.thumbs_up(), give.rate(0.5)])]
            assert [answer.error for answer in answers] == [None, None]

    asyncio.run(talk())
