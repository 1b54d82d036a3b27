"""Choose over gRPC: what is decided, what is shown, and whose options they are."""

import dataclasses
import math
import uuid
from types import MappingProxyType

import pytest
from plaudit import ordering
from plaudit.client import Plaudit
from plaudit.deciding import decide
from plaudit.decoding import channel_sampling
from plaudit.domain import DecodeSpec
from plaudit.errors import InvalidField, Misconfigured
from plaudit.eventlog import Topic
from plaudit.plugins import guard
from plaudit.settings import ChannelSettings, DecisionSettings
from plaudit.testing.serving import local_server, serve_settings
from plaudit.types import Channel, Option, Purpose, Request
from plaudit_echo.plugin import EchoChoice

POST = "You are all wonderful."


class Verdicts(EchoChoice):
    """Allows or blocks a post; makes its options itself, and finds `forbidden` invalid."""

    forbidden = frozenset()
    facts = MappingProxyType({})

    @property
    def declaration(self):
        labels = frozenset({"allow", "block"})
        return dataclasses.replace(
            super().declaration, name="verdicts", labels=labels, policy_version="2026-11", **self.facts
        )

    def render(self, request: Request):
        mine = (Option("allow", "a"), Option("block", "b"))  # as long as each other: neither is sure to win
        return super().render(dataclasses.replace(request, options=request.options or mine))

    def parse(self, prompt, output):
        outcome = super().parse(prompt, output)
        return (
            dataclasses.replace(outcome, valid=False, why_invalid="forbidden") if output in self.forbidden else outcome
        )


@pytest.fixture
def ask(tmp_path, tiny_engine):
    """Starts a server of a domain and asks it; `costs` are the channel's."""
    servers = []

    def start(plugin, costs=()):
        channel = ChannelSettings(decision=DecisionSettings(costs=costs))
        settings = serve_settings(tmp_path / str(len(servers)))
        settings = settings.model_copy(update={"channels": {"verdicts/dear": channel}})
        running = local_server(settings.data_dir, tiny_engine, guard([plugin]), settings=settings)
        client = Plaudit(running.__enter__().target, patience=0.0, timeout=30.0)
        servers.append((running, client))
        return client

    yield start
    for running, client in servers:
        client.close()
        running.__exit__(None, None, None)


def test_a_domain_may_make_its_options_and_a_bare_request_is_answered(ask):
    answer = ask(Verdicts()).choose("verdicts", POST, [])
    assert {option.option_id for option in answer.ranking} == {"allow", "block"}
    assert answer.decided is answer.ranking[0]
    assert answer.decided.probability >= 0.5


def test_a_domain_that_makes_none_asks_the_caller_for_them(local, client):
    for options in ([], ["only one"], [str(number) for number in range(51)]):
        with pytest.raises(InvalidField) as caught:
            client.choose("echo-choice", POST, options)
        assert caught.value.metadata["field"] == "options"
    assert local.records(Topic.INTERACTIONS) == []


def test_the_costs_of_the_channel_move_its_decision_and_no_other(ask):
    client = ask(Verdicts())
    plain = client.choose("verdicts", POST, [])
    likely, other = (option.option_id for option in plain.ranking)
    # Not to decide the less likely label where it is true costs more than any probability can make good.
    price = 10 / plain.ranking[1].probability
    dear = ask(Verdicts(), costs=((other, likely, price),))
    assert dear.choose("verdicts", POST, [], tenant="dear").decision == other
    assert dear.choose("verdicts", POST, []).decision == likely
    declared = Verdicts()
    declared.facts = {"costs": ((other, likely, price),)}
    assert ask(declared).choose("verdicts", POST, []).decision == other
    back = ask(declared, costs=((other, likely, 1.0),))
    assert back.choose("verdicts", POST, [], tenant="dear").decision == likely


def test_exploring_decides_what_it_drew_whatever_it_costs(ask):
    """A decision that was no draw made estimates wrong: the record has the probability of another option."""
    client = ask(Verdicts(), costs=(("block", "allow", 1e6), ("allow", "block", 1e-6)))
    # Drawn by ids that differ each time: of twelve such draws all are the same once in a thousand times.
    drawn = [client.choose("verdicts", POST, [], tenant="dear", purpose=Purpose.EXPLORE) for _ in range(40)]
    assert {answer.decision for answer in drawn} == {"allow", "block"}
    assert all(answer.decided is answer.ranking[0] for answer in drawn)
    assert client.choose("verdicts", POST, [], tenant="dear").decision == "block"


def test_costs_that_name_no_label_fail_their_channel_alone_and_say_so(ask):
    client = ask(Verdicts(), costs=(("blok", "allow", 2.0),))
    with pytest.raises(Misconfigured, match=r"decision\.costs of the domain 'verdicts': .*'blok'"):
        client.choose("verdicts", POST, [], tenant="dear")
    assert client.choose("verdicts", POST, []).decision


def test_an_option_that_is_not_valid_is_never_decided_nor_shown_before_a_valid_one(tmp_path, tiny_engine):
    options = ["yes", "no", "perhaps", "never"]
    strict = Verdicts()
    with (
        local_server(tmp_path / "data", tiny_engine, guard([strict])) as server,
        Plaudit(server.target, patience=0.0, timeout=30.0) as client,
    ):
        strict.forbidden = frozenset({client.choose("verdicts", POST, options).ranking[0].option_id, "never"})
        served = client.choose("verdicts", POST, options)
        for _ in range(6):
            client.choose("verdicts", POST, options, purpose=Purpose.EXPLORE)
        strict.forbidden = frozenset(options)
        assert client.choose("verdicts", POST, options).decided.probability > 0
        _, *records, last = server.records(Topic.INTERACTIONS)
    for record in records:
        valid = [candidate.valid for candidate in record.candidates]
        assert valid == sorted(valid, reverse=True)
        assert sum(valid) in (2, 3)
        assert math.isclose(sum(each.probability for each in record.candidates if each.valid), 1.0)
        assert {each.probability for each in record.candidates if not each.valid} == {0.0}
    assert next(each.valid for each in records[0].candidates if each.option_id == served.decision)
    drawn = records[-1]
    scores = [math.fsum(each.logprobs_sampled) for each in drawn.candidates]
    factors = ordering.log_factors(scores, range(4), [each.valid for each in drawn.candidates])
    assert math.isclose(drawn.order_logprob, math.fsum(factors), abs_tol=1e-5)
    assert not any(each.valid for each in last.candidates)


def test_the_record_says_what_was_decided_and_by_which_rules(tmp_path, tiny_engine):
    with (
        local_server(tmp_path / "data", tiny_engine, guard([Verdicts()])) as server,
        Plaudit(server.target, patience=0.0, timeout=30.0) as client,
    ):
        asked = {"interaction_id": str(uuid.uuid4())}
        first, again = (client.choose("verdicts", POST, [], **asked) for _ in range(2))
        (record,) = server.records(Topic.INTERACTIONS)
    assert first.decision == again.decision == record.decision
    assert record.policy_version == "2026-11"
    by_id = {each.option_id: each.probability for each in record.candidates}
    assert list(by_id)[decide(list(by_id.values()))] == record.decision


def test_a_channel_begins_at_the_temperature_at_which_its_releases_will_serve(tmp_path, tiny_engine):
    class Warm(Verdicts):
        def decode_spec(self, prompt, mode):
            return DecodeSpec(temperature=1.3)

    settings = serve_settings(tmp_path)
    plugins = guard([Warm()])
    with local_server(settings.data_dir, tiny_engine, plugins, settings=settings) as server:
        with Plaudit(server.target) as client:
            client.choose("verdicts", POST, [])
        manifest = server.registry.manifest(Channel("verdicts", "default"), 0)
    assert manifest.temperature == channel_sampling(plugins["verdicts"], settings.policy).temperature == 1.3
