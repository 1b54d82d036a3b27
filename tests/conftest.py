"""Fixtures that several kinds of tests share: real servers, started where they can be and skipped loudly elsewhere."""

import contextlib
import gc
import importlib
import logging
import os
import random
import socket
import subprocess
import uuid
import warnings
from pathlib import Path

import hypothesis
import pytest
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parent.parent
# Several runs of these tests share a machine: no process of a test takes a fixed port.
os.environ |= {f"PLAUDIT_{process}__METRICS_PORT": "0" for process in ("SERVE", "JOIN", "LEARN")}
# Tests run side by side, and sums of floats depend on the number of threads: each process has one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No example fails because a machine is slow.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")
# A program that starts real brokers on loopback and prints the variables, kept beside the repository.
KAFKA_TOOL = ROOT.parent / "shared" / "tools" / "kafka" / "kafka"


def pytest_collection_finish():
    """What all imports left is there to the end: no collection of garbage looks at it again."""
    gc.collect()
    gc.freeze()


# Linux and macOS give other programs' own sockets the ports above; so nobody takes one of these by chance.
LISTENED_PORTS = range(15_000, 32_000)


@pytest.fixture(scope="session")
def free_port():
    """Gives ports that nobody has, for a program that listens there a while later."""

    def found():
        while True:
            port = random.choice(LISTENED_PORTS)
            with contextlib.suppress(OSError), socket.socket() as tried:
                tried.bind(("127.0.0.1", port))
                return port

    return found


def _kafka(command, folder, *more):
    done = subprocess.run([KAFKA_TOOL, command, folder, *more], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _started(folder):
    shell = f'{_kafka("start", folder)}\nprintf %s "$PLAUDIT_TEST_KAFKA"'
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def _contained(module, made, otherwise):
    """A server in a container, by testcontainers if that is installed and Docker answers; skips loudly without."""
    server, why = None, ""
    with _without_warnings():
        try:
            server = made(importlib.import_module(f"testcontainers.{module}")).start()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
    if server is None:
        pytest.skip(f"{otherwise} (testcontainers, which would start one in Docker: {why})")
    yield server
    with _without_warnings():
        server.stop()
        del server


@contextlib.contextmanager
def _without_warnings():
    """The library deprecates parts of itself, and Docker's client leaves sockets to the collection of garbage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory):
    """Bootstrap servers of a real Kafka: PLAUDIT_TEST_KAFKA, else one that is started for this session."""
    given = os.environ.get("PLAUDIT_TEST_KAFKA")
    if given:
        yield given
        return
    if not KAFKA_TOOL.exists():
        otherwise = "NO KAFKA: set PLAUDIT_TEST_KAFKA to bootstrap servers (host:port); nothing of Kafka was tested"
        with _contained("kafka", lambda library: library.KafkaContainer().with_kraft(), otherwise) as kafka:
            yield kafka.get_bootstrap_server()
        return
    folder = tmp_path_factory.mktemp("kafka")
    try:
        yield _started(folder)
    finally:
        _kafka("stop", folder)


@pytest.fixture
def mortal_kafka(tmp_path):
    """A broker of the test's own as (bootstrap, kill, start): the shared one must not die under other tests."""
    if not KAFKA_TOOL.exists():
        pytest.skip("NO BROKER TO KILL: outages of Kafka were not tested")
    folder = tmp_path / "kafka"
    try:
        yield _started(folder), lambda: _kafka("kill", folder, "1"), lambda: _kafka("start", folder)
    finally:
        _kafka("stop", folder)


@pytest.fixture
def kafka_leftovers():
    """Collects what Kafka's client leaves behind: it closes sockets after failures by garbage collection alone.

    Without it the warning about such a socket fails whichever test runs at the time of the collection. The client's
    log is off meanwhile, because records that pytest captures hold the sockets.
    """
    log = logging.getLogger("kafka")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def postgres_server():
    """SQLAlchemy URL of a real PostgreSQL server whose user may create databases: PLAUDIT_TEST_POSTGRES, else one."""
    given = os.environ.get("PLAUDIT_TEST_POSTGRES")
    if given:
        yield given
        return
    otherwise = "NO POSTGRESQL: set PLAUDIT_TEST_POSTGRES (postgresql+psycopg://...); the store was tested on SQLite"
    made = "postgres", lambda library: library.PostgresContainer("postgres:17", driver="psycopg")
    with _contained(*made, otherwise) as postgres:
        yield postgres.get_connection_url()


@pytest.fixture
def postgres_url(postgres_server):
    """A fresh database on the server, dropped afterwards."""
    name = f"plaudit_{uuid.uuid4().hex}"
    server = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sa.make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request, tmp_path):
    """An empty database of each kind that the store runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def small_disk(tmp_path):
    """The folder of a file system of two megabytes, so that a test can fill it."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(
            f"NO SMALL DISK: tmpfs cannot be mounted here ({mounted.stderr.strip()}); full disks were not tested"
        )
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
