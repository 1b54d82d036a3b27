"""Servers for tests: given, else in a container, else the tests say that they were skipped and why."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from tests import conftest


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch, tmp_path):
    monkeypatch.delenv("PLAUDIT_TEST_KAFKA", raising=False)
    monkeypatch.delenv("PLAUDIT_TEST_POSTGRES", raising=False)
    monkeypatch.setattr(conftest, "KAFKA_TOOL", tmp_path / "no tool")


def kafka():
    return conftest.kafka_bootstrap.__wrapped__(None)


def postgres():
    return conftest.postgres_server.__wrapped__()


@pytest.mark.parametrize(("module", "fixture"), [("kafka", kafka), ("postgres", postgres)])
def test_without_the_library_the_tests_are_skipped_loudly(monkeypatch, module, fixture):
    monkeypatch.setitem(sys.modules, f"testcontainers.{module}", None)
    with pytest.raises(pytest.skip.Exception, match=r"^NO (KAFKA|POSTGRESQL): .*testcontainers.*ModuleNotFoundError"):
        next(fixture())


class Container:
    def __init__(self, *given, **named):
        self.log = []

    def with_kraft(self):
        return self

    def start(self):
        self.log.append("start")
        return self

    def stop(self):
        self.log.append("stop")

    def get_bootstrap_server(self):
        return self

    get_connection_url = get_bootstrap_server


@pytest.mark.parametrize(("module", "fixture"), [("kafka", kafka), ("postgres", postgres)])
def test_a_container_is_started_and_stopped_and_one_that_cannot_be_is_a_skip_that_says_why(
    monkeypatch, module, fixture
):
    library = SimpleNamespace(KafkaContainer=Container, PostgresContainer=Container)
    monkeypatch.setitem(sys.modules, f"testcontainers.{module}", library)
    server = fixture()
    found = next(server)
    assert found.log == ["start"]
    assert list(server) == []
    assert found.log == ["start", "stop"]

    def no_docker(self):
        raise RuntimeError("no Docker here")

    monkeypatch.setattr(Container, "start", no_docker)
    with pytest.raises(pytest.skip.Exception, match=r"^NO .*was tested.*RuntimeError: no Docker here"):
        next(fixture())
