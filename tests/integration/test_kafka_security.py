"""Connections to secured brokers, and what is said of each way in which they fail."""

import contextlib
import socket
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest
from plaudit.errors import LogUnavailable, Misconfigured
from plaudit.eventlog import Topic, open_log
from plaudit.eventlog.kafka_diagnosis import diagnose
from plaudit.eventlog.kafka_topics import required_configs
from plaudit.settings import KafkaSettings, LogSettings, Settings
from pydantic import ValidationError

from tests.conftest import KAFKA_TOOL

pytestmark = [
    pytest.mark.usefixtures("kafka_leftovers"),
    pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning"),  # of sockets, and of those of TLS
]


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A broker with SASL_SSL and mutual TLS; its user may do everything under the prefix "secure."."""
    if not KAFKA_TOOL.exists():
        pytest.skip("NO SECURE BROKER: TLS and passwords of Kafka were not tested")
    folder = tmp_path_factory.mktemp("secure")
    command = [KAFKA_TOOL, "start", folder, "--secure"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=400).stdout.splitlines()
    found = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    _allow(found["PLAUDIT_TEST_KAFKA"])
    yield found
    subprocess.run([KAFKA_TOOL, "stop", folder], check=False, capture_output=True)


def _allow(bootstrap):
    from kafka import KafkaAdminClient
    from kafka.admin import ACL, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePattern, ResourceType

    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    everything = [
        ResourcePattern(kind, "secure.", ACLResourcePatternType.PREFIXED)
        for kind in (ResourceType.TOPIC, ResourceType.GROUP)
    ]
    allow = ACLPermissionType.ALLOW
    admin.create_acls([ACL("User:plaudit", "*", ACLOperation.ALL, allow, pattern) for pattern in everything])
    admin.close()


def kafka(secure, kind="SASL_SSL", **changed):
    values = {
        "bootstrap": secure[f"PLAUDIT_TEST_KAFKA_{kind}"],
        "topic_prefix": "secure.",
        "partitions": 1,
        "timeout_seconds": 5,
        "ca_file": secure["PLAUDIT_TEST_KAFKA_CA"],
    }
    if kind == "SASL_SSL":
        user, password = secure["PLAUDIT_TEST_KAFKA_USERS"].split(",")[0].split(":")
        values |= {"security": "sasl_ssl", "username": user, "password": password}
    else:
        values |= {"security": "ssl", "client_cert_file": secure["PLAUDIT_TEST_KAFKA_CLIENT_CERT"]}
        values |= {"client_key_file": secure["PLAUDIT_TEST_KAFKA_CLIENT_KEY"]}
    return KafkaSettings(**values | changed)


def opened(settings, folder):
    return open_log(Settings(data_dir=folder, log=LogSettings(kind="kafka", kafka=settings)))


@pytest.mark.needs_kafka
@pytest.mark.parametrize("kind", ["SASL_SSL", "SSL"])
def test_records_go_through_a_password_and_through_mutual_tls(secure, tmp_path, kind):
    log = opened(kafka(secure, kind), tmp_path)
    log.append(Topic.FEEDBACK, "k", b"v")
    consumer = log.consumer([Topic.FEEDBACK], f"g{uuid.uuid4().hex[:6]}", dict)
    found = []
    ends = time.monotonic() + 300
    while not found and time.monotonic() < ends:
        found += consumer.poll(0.2, 10)
    assert found[0].value == b"v"
    consumer.close()
    log.close()


@pytest.mark.needs_kafka
@pytest.mark.parametrize(
    ("kind", "changed", "says"),
    [
        ("SASL_SSL", {"password": "wrong"}, "refuses the user 'plaudit': name or password is wrong"),
        ("SASL_SSL", {"mechanism": "PLAIN"}, "offers no PLAIN; it offers SCRAM"),
        ("SASL_SSL", {"ca_file": ""}, "is not to be trusted"),
        ("SASL_SSL", {"security": "plaintext"}, "probably wants TLS or a password"),
        ("SSL", {"client_cert_file": "", "client_key_file": ""}, "wants a client's certificate"),
        ("SASL_SSL", {"topic_prefix": "another."}, "deny this client what it needs"),
    ],
)
def test_each_way_to_fail_is_named(secure, tmp_path, kind, changed, says):
    with pytest.raises(Misconfigured, match=says):
        opened(kafka(secure, kind, timeout_seconds=2, **changed), tmp_path)


def test_a_port_where_nothing_listens_and_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:9: Connection refused"):
        opened(KafkaSettings(bootstrap="127.0.0.1:9", timeout_seconds=0.5), tmp_path)
    missing = KafkaSettings(bootstrap="127.0.0.1:9", security="ssl", ca_file=str(tmp_path / "no.pem"))
    with pytest.raises(Misconfigured, match=r"log\.kafka\.ca_file=.*no\.pem"):
        opened(missing, tmp_path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"security": "sasl_ssl", "username": "u"}, "needs username and password"),
        ({"client_cert_file": "c.pem"}, "belong together"),
        ({"replication": 2, "min_insync_replicas": 3}, "the largest is min_insync_replicas=2"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(values, says):
    with pytest.raises(ValidationError, match=says):
        KafkaSettings(**values)


@pytest.mark.needs_kafka
@pytest.mark.parametrize(
    ("topic", "config", "value"),
    [
        (Topic.FEEDBACK, "retention.ms", "604800000"),
        (Topic.INTERACTIONS, "cleanup.policy", "compact"),
        (Topic.FEEDBACK, "retention.bytes", "1000000"),
        (Topic.RELEASES, "max.compaction.lag.ms", "9223372036854775807"),
        (Topic.INTERACTIONS, "unclean.leader.election.enable", "true"),
    ],
)
def test_a_topic_with_a_wrong_setting_is_refused_with_the_right_one(kafka_bootstrap, tmp_path, topic, config, value):
    from kafka import KafkaAdminClient
    from kafka.admin import ConfigResource, ConfigResourceType

    settings = KafkaSettings(bootstrap=kafka_bootstrap, topic_prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=1)
    opened(settings, tmp_path).close()
    name = settings.topic_prefix + topic
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {config: value})])
    admin.close()
    right = required_configs(topic, settings)[config][0]
    with pytest.raises(Misconfigured, match=rf"{name} has {config}={value}: set it to {right}"):
        _until_refused(settings, tmp_path)


def _until_refused(settings, folder):
    ends = time.monotonic() + 300
    while time.monotonic() < ends:  # the broker takes its new setting when it pleases
        opened(settings, Path(folder)).close()


@pytest.mark.parametrize("security", ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"])
@pytest.mark.parametrize("says", ["says nothing", "hangs up"])
def test_a_broker_that_is_stopped_or_away_behind_a_proxy_is_no_wrong_setting(monkeypatch, security, says):
    monkeypatch.setattr("plaudit.eventlog.kafka_diagnosis._SECONDS", 0.3 if says == "says nothing" else 60.0)
    user = {"username": "u", "password": "p"} if security.startswith("sasl") else {}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        settings = KafkaSettings(bootstrap=f"127.0.0.1:{listening.getsockname()[1]}", security=security, **user)

        def hang_up():
            with contextlib.suppress(OSError):  # until nobody listens any more
                while True:
                    listening.accept()[0].close()

        if says == "hangs up":
            threading.Thread(target=hang_up, daemon=True).start()
        found = diagnose(settings)
        listening.shutdown(socket.SHUT_RDWR)
    assert isinstance(found, LogUnavailable)
    assert f"takes a connection and {says}" in found.message
