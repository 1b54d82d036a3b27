"""`serve.compare_share`: comparisons arise by themselves, and no caller gets another number than it asked for."""

from __future__ import annotations

import uuid

import pytest
from plaudit.client import Plaudit
from plaudit.ids import new_id
from plaudit.plugins import load_plugins
from plaudit.serving.generation import _unit_of
from plaudit.settings import Settings
from plaudit.testing.serving import local_server, serve_settings


@pytest.fixture
def served(tmp_path, tiny_engine):
    """A server on which half of all open calls of one channel get two completions, and its client."""
    settings = serve_settings(tmp_path / "data")
    share = Settings.model_validate({"channels": {"echo/half": {"serve": {"compare_share": 0.5}}}}).channels
    settings = settings.model_copy(update={"channels": share})
    with (
        local_server(settings.data_dir, tiny_engine, load_plugins(("echo",)), settings=settings) as server,
        Plaudit(server.target, patience=0.0, timeout=60.0) as client,
    ):
        yield client


def ids(*, compared, count):
    found = []
    while len(found) < count:
        name = new_id()
        if (_unit_of("compare", name) < 0.5) is compared:
            found.append(name)
    return found


def texts(client, name, tenant="half", **options):
    reply = client.generate("echo", "Say tea.", tenant=tenant, interaction_id=name, max_tokens=4, **options)
    return [each.text for each in reply.completions]


def test_open_calls_get_two_in_their_share_and_the_same_again_if_they_are_sent_again(served):
    (two,), (one,) = ids(compared=True, count=1), ids(compared=False, count=1)
    assert (len(texts(served, two)), len(texts(served, one))) == (2, 1)
    assert texts(served, two) == texts(served, two)
    reply = served.generate("echo", "Say tea.", tenant="half", interaction_id=ids(compared=True, count=1)[0])
    reply.choose(0, 1, rater="ada")


def test_whoever_named_a_number_asked_of_a_release_evaluates_or_streams_gets_what_was_asked(served):
    names = ids(compared=True, count=6)
    assert len(texts(served, names[0], n=1)) == 1
    assert len(texts(served, names[1], n=3)) == 3
    assert len(texts(served, names[2], release_versions=[0])) == 1
    assert len(texts(served, names[3], purpose="evaluate")) == 1
    assert len(texts(served, names[4], tenant="other")) == 1
    *_, done = served.stream("echo", "Say tea.", tenant="half", interaction_id=names[5], max_tokens=4)
    assert len(done.completions) == 1


def test_the_share_is_drawn_by_the_id_alone():
    units = [_unit_of("compare", str(uuid.UUID(int=number))) for number in range(2000)]
    assert sum(unit < 0.2 for unit in units) / len(units) == pytest.approx(0.2, abs=0.03)
