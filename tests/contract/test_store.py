"""The SQL database itself, on SQLite and PostgreSQL: schema, creation by rivals, errors, leases, turn outcomes."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from plaudit.errors import Misconfigured, StoreUnavailable
from plaudit.eventlog import Topic
from plaudit.eventlog.sqlite import SqliteEventLog
from plaudit.store import database as module
from plaudit.store import leases as leases_module
from plaudit.store.database import METADATA, SCHEMA, Database
from plaudit.store.leases import LeaseHeld, LeaseLost, Leases
from plaudit.store.outcomes import TURN_OUTCOME, TurnOutcomes
from plaudit.types import Channel

CHANNEL = Channel("instruction", "default")
MIGRATIONS = Path(module.__file__).parent / "migrations"
OPEN = """
import sys
from plaudit.store.database import Database
print("ready", flush=True)
sys.stdin.readline()
Database(sys.argv[1]).close()
"""


@pytest.fixture
def database(store_url):
    opened = Database(store_url)
    yield opened
    opened.close()


def test_the_newest_migration_is_the_schema_that_is_expected():
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA]


def test_the_migrations_make_exactly_the_tables_that_the_code_declares(database):
    assert {"lease", "turn_outcome"} <= METADATA.tables.keys()
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": _declared})
        assert compare_metadata(context, METADATA) == []


def _declared(thing, name, kind, reflected, compared_to):
    return kind != "table" or name in METADATA.tables


@pytest.mark.apart
def test_processes_that_open_an_empty_database_at_once_all_work(store_url):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", OPEN, store_url], **pipes) for _ in range(4)]
    for process in started:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in started:
        process.stdin.write("now\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=500)[1], process.returncode) for process in started]
    assert [code for _, code in ends] == [0] * 4, ends


def test_a_database_that_is_opened_again_is_not_migrated_again(database, store_url, monkeypatch):
    monkeypatch.setattr(module, "_migrate", lambda connection: pytest.fail("migrated again"))
    Database(store_url).close()


def test_a_store_of_a_newer_release_is_refused(database, store_url):
    with database.writing() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Misconfigured, match="schema 9999") as caught:
        Database(store_url)
    assert caught.value.metadata["setting"] == "store.url"


def test_a_migration_that_fails_leaves_nothing(store_url, monkeypatch):
    def fails(connection):
        connection.exec_driver_sql("CREATE TABLE half (x INTEGER)")
        raise RuntimeError("no")

    monkeypatch.setattr(module, "_migrate", fails)
    with pytest.raises(RuntimeError):
        Database(store_url)
    engine = sa.create_engine(store_url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_commits_on_sqlite_are_on_disk_before_they_return(tmp_path):
    opened = Database(f"sqlite:///{tmp_path / 'store.sqlite'}")
    with opened.reading() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")
        }
    opened.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


def test_only_the_owner_reads_the_files_and_the_folder(tmp_path):
    path = tmp_path / "new" / "store.sqlite"
    opened = Database(f"sqlite:///{path}")
    TurnOutcomes(opened).remember(CHANNEL, "e", "s", "refused", "")
    modes = {each.name: each.stat().st_mode & 0o777 for each in path.parent.iterdir()}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    opened.close()
    assert len(modes) == 3  # the database, its write-ahead log and its index
    assert set(modes.values()) == {0o600}


def test_a_file_that_others_could_read_is_narrowed(tmp_path):
    path = tmp_path / "store.sqlite"
    path.touch(0o644)
    Database(f"sqlite:///{path}").close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.apart
def test_what_is_written_after_a_second_opening_is_there_when_another_process_has_ended(tmp_path):
    """To open and close the file beside SQLite would drop this process's locks on it, and its write-ahead log goes."""
    url, log_file = f"sqlite:///{tmp_path / 'store.sqlite'}", tmp_path / "log.sqlite"
    store, log = Database(url), SqliteEventLog(log_file)
    with store.writing() as connection:
        connection.execute(sa.text("CREATE TABLE said (n INTEGER)"))
    log.append(Topic.FEEDBACK, "one", b"1")
    again, consumer = Database(url), log.consumer((Topic.FEEDBACK,), "test", dict)
    assert in_another_process(url, log_file) == "0 1"
    with store.writing() as connection:
        connection.execute(sa.text("INSERT INTO said VALUES (1)"))
    log.append(Topic.FEEDBACK, "two", b"2")
    assert in_another_process(url, log_file) == "1 2"
    for each in (consumer, log, again, store):
        each.close()


def in_another_process(url, log_file):
    """How much a process that opens both and ends has found in them."""
    program = (
        "import sqlite3, sys, sqlalchemy as sa; from plaudit.store.database import Database\n"
        "store, log = Database(sys.argv[1]), sqlite3.connect(sys.argv[2])\n"
        "with store.reading() as connection: rows = connection.execute(sa.text('SELECT count(*) FROM said')).scalar()\n"
        "print(rows, log.execute('SELECT count(*) FROM records').fetchone()[0])\n"
        "log.close(); store.close()"
    )
    done = subprocess.run([sys.executable, "-c", program, url, log_file], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_full_database_is_unavailable_and_says_so(tmp_path):
    opened = Database(f"sqlite:///{tmp_path / 'store.sqlite'}")
    with opened.reading() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no page more than there are; the pool keeps it
    with pytest.raises(StoreUnavailable, match="full") as caught:
        TurnOutcomes(opened).remember(CHANNEL, "e", "s", "refused", "x" * 100_000)
    assert caught.value.retryable
    assert TurnOutcomes(opened).last(CHANNEL) is None
    with opened.reading() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 100000")
    assert TurnOutcomes(opened).remember(CHANNEL, "e", "s", "refused", "x" * 100_000).attempts == 1
    opened.close()


def test_a_locked_database_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    first, second = Database(url), Database(url)
    with first.writing(), pytest.raises(StoreUnavailable, match="locked"), second.writing():
        pass
    first.close()
    second.close()


@pytest.mark.parametrize("url", ["nonsense", "oracle+nothing://x/y", "postgresql+psycopg://h:port/x"])
def test_a_url_of_no_database_is_refused(url):
    with pytest.raises(Misconfigured, match=r"store\.url"):
        Database(url)


def test_a_server_that_is_away_is_unavailable_and_the_password_stays_out_of_the_message():
    pytest.importorskip("psycopg")
    with pytest.raises(StoreUnavailable) as caught:
        Database("postgresql+psycopg://plaudit:opensesame@127.0.0.1:1/none")
    assert "127.0.0.1" in caught.value.message
    assert "opensesame" not in caught.value.message


def test_a_connection_to_a_server_that_is_gone_ends_within_half_a_minute(postgres_url):
    """What the kernel is told of the connection: no test here can take a machine's power away."""
    database = Database(postgres_url)
    with database.reading() as connection:
        number = connection.connection.driver_connection.fileno()
        with contextlib.closing(socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM)) as own:
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            idle, interval, count, unacknowledged = (own.getsockopt(socket.IPPROTO_TCP, each) for each in options)
    database.close()
    assert (idle + interval * count, unacknowledged) == (30, 30_000)


def test_a_server_that_cut_its_connections_is_asked_again(postgres_url, postgres_server):
    opened = Database(postgres_url)
    TurnOutcomes(opened).remember(CHANNEL, "e", "s", "refused", "")
    server = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        # Waits until each is gone: one that goes a moment later breaks a question that has begun.
        cut = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = :name"
        connection.execute(sa.text(cut), {"name": sa.make_url(postgres_url).database})
    server.dispose()
    assert TurnOutcomes(opened).last(CHANNEL) is not None
    opened.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(Misconfigured, match=r"store\.sqlite"):
        Database(f"sqlite:///{path}")


# Leases.


def test_of_two_owners_one_holds_a_lease_and_the_other_is_told_who(database):
    first, second = Leases(database, "first"), Leases(database, "second")
    lease = first.take("learn")
    with pytest.raises(LeaseHeld, match="first") as caught:
        second.take("learn")
    assert caught.value.owner == "first"
    assert first.holder("learn").owner == "first"
    assert second.take("another").token == 1
    lease.release()
    assert first.holder("learn") is None
    assert second.take("learn").token == lease.token + 1


def test_a_holder_whose_time_is_over_is_fenced_off(database):
    late = Leases(database, "late", seconds=0).take("learn")
    with database.writing() as connection:
        late.check(connection)  # late, and nobody else came: nothing is in danger
    late.renew()
    late = Leases(database, "late", seconds=0).take("learn")
    newer = Leases(database, "newer", seconds=60).take("learn")
    assert newer.token == late.token + 1
    with pytest.raises(LeaseLost):
        _write_under(database, late)
    assert TurnOutcomes(database).last(CHANNEL) is None
    with pytest.raises(LeaseLost):
        late.renew()
    assert late.lost
    late.release()  # must not give back what is another's
    assert Leases(database).holder("learn").owner == "newer"
    with database.writing() as connection:
        newer.check(connection)


def test_a_lease_is_renewed_while_its_holder_works_and_given_back_at_the_end(database, monkeypatch):
    # Long for a busy machine, and renewed each tenth of a second.
    monkeypatch.setattr(leases_module, "RENEWALS", 6000)
    leases = Leases(database, "worker", seconds=600.0)
    with leases.take("learn") as lease:
        first = leases.holder("learn").expires_at
        deadline = time.monotonic() + 300
        while (holder := leases.holder("learn")).expires_at <= first:
            assert time.monotonic() < deadline, "nobody renewed it"
            time.sleep(0.02)
        assert holder.token == lease.token
    assert leases.holder("learn") is None


def test_many_takers_get_a_lease_one_after_another(database):
    tokens, holding, together = [], threading.Lock(), threading.Barrier(4)

    def work(owner):
        leases = Leases(database, owner)
        together.wait()
        while True:
            try:
                lease = leases.take("learn")
            except LeaseHeld:
                continue
            assert holding.acquire(blocking=False), "two hold it"
            tokens.append(lease.token)
            holding.release()
            lease.release()
            return

    threads = [threading.Thread(target=work, args=(f"owner {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tokens) == [1, 2, 3, 4]


def test_nobody_takes_a_lease_while_its_holder_writes(database):
    held = Leases(database, "holder", seconds=0).take("learn")
    tries, taken = threading.Event(), threading.Event()

    def take():
        rival = Leases(database, "rival")
        tries.set()
        rival.take("learn")
        taken.set()

    with database.writing() as connection:
        held.check(connection)
        rival = threading.Thread(target=take)
        rival.start()
        assert tries.wait(300)
        assert not taken.wait(0.5)
    rival.join()
    assert taken.is_set()


# Turn outcomes.


def test_turn_outcomes_are_remembered_by_evidence_and_settings(database):
    outcomes = TurnOutcomes(database)
    assert outcomes.last(CHANNEL) is None
    first = outcomes.remember(CHANNEL, "e1", "s1", "reward_rejected", "worse than chance")
    again = outcomes.remember(CHANNEL, "e1", "s1", "failed", "no memory")
    other = outcomes.remember(CHANNEL, "e2", "s1", "promoted", "")
    assert (first.attempts, again.attempts, other.attempts) == (1, 2, 1)
    assert outcomes.find(CHANNEL, "e1", "s1") == again
    assert outcomes.find(CHANNEL, "e1", "s2") is None
    assert outcomes.find(Channel("instruction", "other"), "e1", "s1") is None
    assert outcomes.last(CHANNEL) == other
    assert dt.datetime.now(dt.UTC) - other.at < dt.timedelta(minutes=5)


def _write_under(database, lease):
    row = {"channel": str(CHANNEL), "evidence_digest": "e", "settings_digest": "s", "outcome": "x", "reason": ""}
    with database.writing() as connection:
        connection.execute(sa.insert(TURN_OUTCOME).values(**row, attempts=1, at=dt.datetime.now(dt.UTC)))
        lease.check(connection)
