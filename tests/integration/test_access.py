"""Who may call what, over real servers: keys, tokens, roles, tenants, encryption, limits."""

import contextlib
import datetime as dt
import importlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import httpx
import jwt
import openai
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from plaudit.access.keys import PREFIX, ApiKeys
from plaudit.access.rights import ANY, RIGHTS, Role, rights_table
from plaudit.client import Plaudit
from plaudit.client.calls import connect
from plaudit.errors import (
    BadCredentials,
    HandleWrongRater,
    Misconfigured,
    NoCredentials,
    NotServing,
    NotYourChannel,
    PlauditError,
    RateLimited,
    RoleNeeded,
    TooManyRaters,
)
from plaudit.plugins import load_plugins
from plaudit.privacy import erasure
from plaudit.serving.server import SERVICES
from plaudit.settings import AccessSettings, EngineSettings, ModelSettings
from plaudit.testing.certificates import Authority
from plaudit.testing.serving import local_server, serve_settings
from plaudit.types import Channel
from plaudit.v1 import assistant_pb2 as a
from plaudit.v1 import assistant_pb2_grpc, domains_pb2_grpc, feedback_pb2_grpc, privacy_pb2_grpc, releases_pb2_grpc
from plaudit.v1 import domains_pb2 as d
from plaudit.v1 import feedback_pb2 as f
from plaudit.v1 import privacy_pb2 as p
from plaudit.v1 import releases_pb2 as r
from plaudit.wire import from_call

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / os.environ.get("PLAUDIT_TEST_TOOLS", "../shared/tools")
HELLO = "Say hello."
OWN, OTHER = Channel("echo", "acme"), Channel("echo", "rival")
ERASURES = {channel: f"0195521a-7c3b-7a10-8000-00000000000{index}" for index, channel in enumerate((OWN, OTHER))}
STUBS = {
    "AssistantService": assistant_pb2_grpc.AssistantServiceStub,
    "FeedbackService": feedback_pb2_grpc.FeedbackServiceStub,
    "ReleaseService": releases_pb2_grpc.ReleaseServiceStub,
    "PrivacyService": privacy_pb2_grpc.PrivacyServiceStub,
    "DomainService": domains_pb2_grpc.DomainServiceStub,
}


@pytest.fixture(scope="module")
def engine(tiny_base):
    from plaudit.engine.torch_engine import TorchEngine

    engine = TorchEngine(tiny_base, EngineSettings(widths=(4,)), ModelSettings(adapter_layers=2))
    yield engine
    engine.close()


def settings_of(folder, serve=(), **access):
    settings = serve_settings(folder, **dict(serve))
    return settings.model_copy(update={"access": AccessSettings.model_validate({"required": True, **access})})


@contextlib.contextmanager
def running(folder, engine, serve=(), **access):
    plugins = load_plugins(("echo", "echo-choice"))
    with local_server(folder, engine, plugins, settings=settings_of(folder, serve, **access)) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, engine):
    """A server that takes calls with credentials alone, over the time of the module."""
    with running(tmp_path_factory.mktemp("guarded"), engine) as server:
        yield server


def make_key(server, *roles, tenants=(OWN.tenant,), domains=(ANY,), **more):
    return ApiKeys(server.registry.database).create("test", set(roles), tenants, domains, by="test", **more)


@pytest.fixture(scope="module")
def texts(guarded):
    """The text of one key per role, each for the tenant of OWN."""
    return {role: make_key(guarded, role)[1] for role in Role}


def client_of(server, key="", **more):
    return Plaudit(server.target, patience=0.0, timeout=30.0, **({"key": key} if key else {}), **more)


@pytest.fixture(scope="module")
def handles(guarded):
    """A handle of each tenant."""
    with client_of(guarded, make_key(guarded, Role.CALLER, tenants=(ANY,))[1]) as client:
        return {c: client.generate("echo", HELLO, tenant=c.tenant, max_tokens=1).handle for c in (OWN, OTHER)}


# The matrix ------------------------------------------------------------------------------------------


def request(method, channel, handles):
    """A request of `method` that concerns `channel`."""
    asked = {"domain": channel.domain, "tenant": channel.tenant, "messages": [a.Message(role="user", content=HELLO)]}
    generate = a.GenerateRequest(**asked, sampling=a.Sampling(max_tokens=1))
    options = [a.Option(option_id=name, text=name) for name in ("yes", "no")]
    act = f.Feedback(handle=handles[channel], thumbs=f.Thumbs(up=True))
    name = str(channel)
    return {
        "Generate": generate,
        "StreamGenerate": a.StreamGenerateRequest(request=generate),
        "Choose": a.ChooseRequest(**{**asked, "domain": "echo-choice"}, options=options),
        "SubmitFeedback": f.SubmitFeedbackRequest(feedback=act),
        "StreamFeedback": iter([f.StreamFeedbackRequest(feedback=act)]),
        "RetractFeedback": f.RetractFeedbackRequest(handle=handles[channel], feedback_id="nobody"),
        "ListDomains": d.ListDomainsRequest(),
        "ListChannels": r.ListChannelsRequest(),
        "ListReleases": r.ListReleasesRequest(channel=name),
        "GetRelease": r.GetReleaseRequest(channel=name, version=0),
        "WatchReleases": r.WatchReleasesRequest(channel=name),
        "PromoteRelease": r.PromoteReleaseRequest(channel=name, version=7),
        "RollBackRelease": r.RollBackReleaseRequest(channel=name, to_version=7),
        "PinRelease": r.PinReleaseRequest(channel=name, pinned=False),
        "ErasePerson": p.ErasePersonRequest(tenant=channel.tenant, person="eva"),
        "GetErasureReceipt": p.GetErasureReceiptRequest(erasure_id=ERASURES[channel]),
    }[method]


def outcome(server, key, method, message):
    """The reason that a call ends with; "" if it is answered."""
    service, name = method.split("/")
    with grpc.insecure_channel(server.target) as channel:
        call = getattr(STUBS[service](channel), name)
        metadata = [("authorization", f"Bearer {key}")] if key else []
        try:
            answer = call(message, metadata=metadata, timeout=20)
            first = next(iter(answer)) if hasattr(answer, "__next__") else answer
            if hasattr(answer, "cancel"):
                answer.cancel()
        except grpc.RpcError as error:
            return from_call(error).reason
    reason = getattr(first, "reason", 0)
    return (
        f.StreamFeedbackResponse.DESCRIPTOR.fields_by_name["reason"]
        .enum_type.values_by_number[reason]
        .name.removeprefix("ERROR_REASON_")
        .replace("UNSPECIFIED", "")
    )


def test_every_call_has_its_row_in_the_table_of_rights():
    protos = sorted((ROOT / "protos" / "plaudit" / "v1").glob("*.proto"))
    files = [importlib.import_module(f"plaudit.v1.{each.stem}_pb2").DESCRIPTOR for each in protos]
    services = {s.full_name: s for file in files for s in file.services_by_name.values()}
    assert services.keys() == set(SERVICES)
    calls = {f"{s.name}/{method.name}" for s in services.values() for method in s.methods}
    assert calls == RIGHTS.keys()
    assert rights_table() in (ROOT / "docs" / "access.md").read_text(encoding="utf-8")


def test_a_server_offers_no_call_beside_the_table(guarded, texts):
    """As whoever connects finds out: what the server lists, not what the sources say."""
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(guarded.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        key = [("authorization", f"Bearer {texts[Role.CALLER]}")]
        (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=20, metadata=key)
    offered = {each.name for each in answer.list_services_response.service}
    beside = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert offered - beside == {f"plaudit.v1.{method.split('/')[0]}" for method in RIGHTS}


def test_lists_have_the_callers_own_alone(guarded, handles):
    with client_of(guarded, make_key(guarded, Role.OPERATOR, domains=("echo",))[1]) as client:
        assert [domain.name for domain in client.domains()] == ["echo"]
        assert [state.channel for state in client.channels()] == [OWN]
    with client_of(guarded, make_key(guarded, Role.OPERATOR, tenants=(ANY,))[1]) as client:
        assert {OWN, OTHER} <= {state.channel for state in client.channels()}


@pytest.mark.parametrize("role", Role)
def test_every_role_may_make_its_calls_for_its_own_tenant_alone(guarded, texts, handles, role):
    refusals = {"ROLE_NEEDED", "NOT_YOUR_CHANNEL"}
    for channel, erasure_id in ERASURES.items():
        erasure.request(guarded.registry.database, erasure_id, channel.tenant, "0" * 32, "test")
    for method, may in RIGHTS.items():
        name = method.split("/")[1]
        own = outcome(guarded, texts[role], method, request(name, OWN, handles))
        other = outcome(guarded, texts[role], method, request(name, OTHER, handles))
        if role in may:
            assert own not in refusals, (method, own)
            # Version 7 is nowhere: that is said to those who may ask. A list of all names no channel, and has the
            # caller's own alone.
            expected = {"ListDomains": "", "ListChannels": ""}
            assert other == expected.get(name, "NOT_YOUR_CHANNEL"), (method, other)
        else:
            assert (own, other) == ("ROLE_NEEDED", "ROLE_NEEDED"), method


def test_without_credentials_nothing_is_answered_but_health(guarded, handles):
    for method in RIGHTS:
        assert outcome(guarded, "", method, request(method.split("/")[1], OWN, handles)) == "NO_CREDENTIALS", method
    with grpc.insecure_channel(guarded.target) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=300)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, timeout=300))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# Keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *("none", PREFIX, f"{PREFIX}x", f"{PREFIX}{'0' * 12}_", f"{PREFIX}{'0' * 12}_{'x' * 43}"),
        "eyJhbGciOiJub25lIn0.e30.",
    ],
)
def test_what_is_no_key_is_refused(guarded, key):
    with client_of(guarded, key) as client, pytest.raises(BadCredentials):
        client.generate("echo", HELLO, tenant=OWN.tenant)


def test_a_key_with_another_secret_is_refused_and_the_store_holds_no_secret(guarded, texts):
    text = texts[Role.CALLER]
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    with client_of(guarded, wrong) as client, pytest.raises(BadCredentials) as caught:
        client.generate("echo", HELLO, tenant=OWN.tenant)
    assert caught.value.metadata["why"] == "unknown"
    secret = text.split("_", 2)[2]
    for path in guarded.settings.data_dir.rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), path


def test_a_revoked_key_and_an_expired_one_are_refused(tmp_path, engine):
    with running(tmp_path, engine, remember_seconds=0.2) as server:
        key, text = make_key(server, Role.CALLER)
        past = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        old = make_key(server, Role.CALLER, expires_at=past)[1]
        with client_of(server, old) as client, pytest.raises(BadCredentials, match="expired"):
            client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1)
        with client_of(server, text) as client:
            client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1)
            ApiKeys(server.registry.database).revoke(key.key_id, by="test")
            time.sleep(0.25)
            with pytest.raises(BadCredentials, match="revoked"):
                client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1)


def test_only_operators_name_releases_and_see_token_ids(guarded, texts):
    ask = {"tenant": OWN.tenant, "max_tokens": 2}
    with client_of(guarded, texts[Role.CALLER]) as client:
        assert client.generate("echo", HELLO, **ask).completions[0].token_ids == ()
        with pytest.raises(RoleNeeded, match="token ids"):
            client.generate("echo", HELLO, token_ids=True, **ask)
        with pytest.raises(RoleNeeded, match="token ids"):
            [*client.stream("echo", HELLO, token_ids=True, **ask)]
        with pytest.raises(RoleNeeded, match="naming a release"):
            client.generate("echo", HELLO, release_versions=[0], **ask)
    with client_of(guarded, texts[Role.OPERATOR]) as client:
        wanted = {"release_versions": [0], "token_ids": True, **ask}
        assert client.generate("echo", HELLO, **wanted).completions[0].token_ids


def test_the_acting_operator_is_the_authenticated_one_and_the_salt_stays_in_the_registry(guarded, texts, handles):
    key, text = make_key(guarded, Role.OPERATOR)
    channel, stubs = connect(guarded.target, {"key": text})
    with channel:
        pin = r.PinReleaseRequest(channel=str(OWN), pinned=True)
        claimed = (*stubs.releases.PinRelease.keywords["metadata"], ("plaudit-actor", "somebody else"))
        stubs.releases.PinRelease(pin, metadata=claimed)
        manifest = stubs.releases.GetRelease(r.GetReleaseRequest(channel=str(OWN), version=0)).manifest_json
    assert guarded.registry.history(OWN)[-1].actor == f"key:test/{key.key_id}"
    assert guarded.registry.salt(OWN).hex() not in manifest
    assert "salt" not in json.loads(manifest)


def test_a_key_for_one_domain_opens_no_other(guarded):
    text = make_key(guarded, Role.CALLER, domains=("echo-choice",))[1]
    with client_of(guarded, text) as client:
        client.choose("echo-choice", HELLO, ["yes", "no"], tenant=OWN.tenant)
        with pytest.raises(NotYourChannel):
            client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1)


def test_a_watch_of_all_channels_shows_those_of_the_caller(guarded, texts, handles):
    with client_of(guarded, texts[Role.LEARNER]) as client:
        seen = set()
        # On a slow machine nothing may have come when a watch ends: then a longer one shows it.
        for seconds in (0.5, 5.0, 50.0):
            with contextlib.suppress(PlauditError):
                seen.update(state.channel for state in client.watch(timeout=seconds))
            if seen:
                break
    assert OWN in seen
    assert OTHER not in seen


# Tokens ----------------------------------------------------------------------------------------------

ISSUER, AUDIENCE = "https://issuer.example", "plaudit"


def public(key, key_id):
    method = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**method.to_jwk(key.public_key(), as_dict=True), "kid": key_id}


@pytest.fixture(scope="module")
def provider(tmp_path_factory):
    """A file of public keys, and a function that signs claims."""
    keys = {"one": ec.generate_private_key(ec.SECP256R1()), "two": rsa.generate_private_key(65537, 2048)}
    jwks = tmp_path_factory.mktemp("provider") / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public(key, name) for name, key in keys.items()]}))

    def sign(key_id="one", key=None, algorithm=None, drop=(), **claims):
        key = key or keys[key_id]
        algorithm = algorithm or ("RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256")
        whole = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ana",
            "exp": dt.datetime.now(dt.UTC) + dt.timedelta(minutes=5),
            "plaudit_roles": ["caller"],
            "plaudit_tenants": [OWN.tenant],
            **claims,
        }
        whole = {name: value for name, value in whole.items() if name not in drop}
        return jwt.encode(whole, key, algorithm=algorithm, headers={"kid": key_id})

    return jwks, sign


@pytest.fixture(scope="module")
def federated(tmp_path_factory, engine, provider):
    tokens = {"jwks": str(provider[0]), "issuer": ISSUER, "audience": AUDIENCE}
    with running(tmp_path_factory.mktemp("federated"), engine, tokens=tokens) as server:
        yield server


@pytest.mark.parametrize("key_id", ["one", "two"])
def test_a_token_of_the_provider_is_a_caller(federated, provider, key_id):
    with client_of(federated, token=provider[1](key_id)) as client:
        reply = client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1)
        with pytest.raises(NotYourChannel):
            client.generate("echo", HELLO, tenant=OTHER.tenant, max_tokens=1)
        with pytest.raises(RoleNeeded):
            client.pin(str(OWN))
        assert reply.thumbs_up()


BAD_TOKENS = {
    "expired": lambda sign: sign(exp=dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)),
    "another issuer": lambda sign: sign(iss="https://other.example"),
    "another audience": lambda sign: sign(aud="shop"),
    "no expiry": lambda sign: sign(drop=("exp",)),
    "no subject": lambda sign: sign(drop=("sub",)),
    "another's key": lambda sign: sign(key=ec.generate_private_key(ec.SECP256R1())),
    "an unknown key": lambda sign: sign("three", key=ec.generate_private_key(ec.SECP256R1())),
    "an algorithm that is not allowed": lambda sign: sign("two", algorithm="RS512"),
    "a shared secret": lambda sign: sign(key="x" * 32, algorithm="HS256"),
    "roles that are no list": lambda sign: sign(plaudit_roles="operator"),
}


@pytest.mark.parametrize("what", BAD_TOKENS)
def test_a_token_that_is_wrong_is_refused(federated, provider, what):
    with client_of(federated, token=BAD_TOKENS[what](provider[1])) as client, pytest.raises(BadCredentials):
        client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1)


def test_a_token_without_roles_or_tenants_opens_nothing(federated, provider):
    with client_of(federated, token=provider[1](drop=("plaudit_roles",))) as client, pytest.raises(RoleNeeded):
        client.generate("echo", HELLO, tenant=OWN.tenant)
    with client_of(federated, token=provider[1](plaudit_roles=["chief"])) as client, pytest.raises(RoleNeeded):
        client.generate("echo", HELLO, tenant=OWN.tenant)
    with client_of(federated, token=provider[1](drop=("plaudit_tenants",))) as client, pytest.raises(NotYourChannel):
        client.generate("echo", HELLO, tenant=OWN.tenant)


def test_a_raters_own_token_rates_as_that_rater_alone(federated, provider):
    with client_of(federated, token=provider[1]()) as client:
        handle = client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1).handle
    with client_of(federated, token=provider[1](plaudit_roles=["rater"])) as client:
        giver = client.feedback_from_handle(handle)
        giver.thumbs_up(rater="ana")
        giver.thumbs_up()
        with pytest.raises(HandleWrongRater):
            giver.thumbs_up(rater="eva")


def test_keys_from_a_url_are_read_anew_for_a_key_that_is_not_known(provider, monkeypatch):
    from plaudit.access import tokens as module
    from plaudit.settings import TokenSettings

    fresh = ec.generate_private_key(ec.SECP256R1())
    answers, body = [], [provider[0].read_bytes()]

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self):
            answers.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body[0])

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/jwks"
        tokens = module.Tokens(TokenSettings(jwks=url, issuer=ISSUER, audience=AUDIENCE))
        assert tokens.caller(provider[1]()).name == "token:ana"
        body[0] = json.dumps({"keys": [public(fresh, "three")]}).encode()
        for _ in range(5):  # within the time in which nobody makes the provider work
            with pytest.raises(BadCredentials):
                tokens.caller(provider[1]("three", key=fresh))
        assert len(answers) == 1
        monkeypatch.setattr(module, "_UNKNOWN_KEY_SECONDS", 0.0)
        assert tokens.caller(provider[1]("three", key=fresh)).name == "token:ana"
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(Misconfigured, match="https"):
        module.Tokens(TokenSettings(jwks="http://issuer.example/jwks", issuer=ISSUER, audience=AUDIENCE))


# Encryption ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def tls(pair, client_ca=""):
    return {"certificate": str(pair.certificate), "key": str(pair.key), "client_ca": str(client_ca)}


def serial(port):
    """Serial number of the certificate that a port shows."""
    from cryptography import x509

    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode()).serial_number


def test_ports_are_encrypted_and_a_renewed_certificate_is_shown_without_a_restart(tmp_path, engine, authority):
    pair = authority.issue("server")
    with running(tmp_path, engine, {"http_port": 0, "health_port": 0}, tls=tls(pair)) as server:
        text = make_key(server, Role.CALLER)[1]
        with client_of(server, text, root_certificates=authority.certificate) as client:
            assert client.generate("echo", HELLO, tenant=OWN.tenant, max_tokens=1).handle
        with client_of(server, text) as client, pytest.raises(NotServing):  # in clear
            client.generate("echo", HELLO, tenant=OWN.tenant)
        stranger = Authority(tmp_path / "stranger").certificate
        with client_of(server, text, root_certificates=stranger) as client, pytest.raises(NotServing):
            client.generate("echo", HELLO, tenant=OWN.tenant)
        ports = (server.server.port, server.server.http_port)
        before = [serial(port) for port in ports]
        assert before[0] == before[1]
        # Half of a renewal: the key of another certificate. The former pair serves on.
        pair.key.write_bytes(authority.issue("other").key.read_bytes())
        assert [serial(port) for port in ports] == before
        authority.issue("server")
        after = [serial(port) for port in ports]
        assert after[0] == after[1] != before[0]


def test_the_page_s_commands_reach_a_guarded_service(tmp_path, engine, authority):
    page = (ROOT / "docs" / "access.md").read_text(encoding="utf-8")
    (block,) = [each for each in re.findall(r"^```sh\n(.*?)^```", page, re.S | re.M) if "grpcurl" in each]
    with running(tmp_path, engine, tls=tls(authority.issue("server"))) as server:
        server.registry.ensure_channel(OWN, "ab" * 32)
        own = {"plaudit_...": make_key(server, Role.OPERATOR)[1], "ca.pem": str(authority.certificate)}
        for shown, mine in {**own, "plaudit.example:50051": server.target, "support/shop": str(OWN)}.items():
            block = block.replace(shown, mine)
        by_anybody, by_ours = block.splitlines()
        # Every program that the page starts is one of PATH, but for our own, which is this one.
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "plaudit").write_text(f'#!/bin/sh\nexec {sys.executable} -m plaudit "$@"\n')
        (folder / "plaudit").chmod(0o755)
        path = os.pathsep.join([str(folder), os.environ["PATH"], str(TOOLS / "bin")])

        def typed(command):
            environment = {**os.environ, "PATH": path}
            done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert str(OWN) in typed(by_ours)
        if shutil.which("grpcurl", path=path) is None:
            pytest.skip("NO GRPCURL: a client that knows reflection alone was not tried")
        assert "plaudit.v1.AssistantService" in typed(by_anybody)


def test_mutual_tls_wants_a_certificate_of_the_authority_and_still_a_key(tmp_path, engine, authority):
    settings = tls(authority.issue("server"), authority.certificate)
    own, stranger = authority.issue("client"), Authority(tmp_path / "stranger").issue("client")
    trust = {"root_certificates": authority.certificate}
    with running(tmp_path / "data", engine, {"http_port": 0}, tls=settings) as server:
        text = make_key(server, Role.CALLER)[1]
        ask = {"tenant": OWN.tenant, "max_tokens": 1}
        shown = (own.certificate, own.key)
        with client_of(server, text, client_certificate=shown, **trust) as client:
            client.generate("echo", HELLO, **ask)
        with client_of(server, client_certificate=shown, **trust) as client, pytest.raises(NoCredentials):
            client.generate("echo", HELLO, **ask)
        with client_of(server, text, **trust) as client, pytest.raises(NotServing):
            client.generate("echo", HELLO, **ask)
        theirs = (stranger.certificate, stranger.key)
        with client_of(server, text, client_certificate=theirs, **trust) as client, pytest.raises(NotServing):
            client.generate("echo", HELLO, **ask)
        context = ssl.create_default_context(cafile=authority.certificate)
        url = f"https://127.0.0.1:{server.server.http_port}/v1/models"
        with httpx.Client(verify=context, trust_env=False) as plain, pytest.raises(httpx.TransportError):
            plain.get(url)
        context.load_cert_chain(*shown)
        with httpx.Client(verify=context, trust_env=False) as plain:
            assert plain.get(url).status_code == 401
            assert plain.get(url, headers={"authorization": f"Bearer {text}"}).status_code == 200


@pytest.mark.parametrize("broken", ["", "no PEM", "missing"])
def test_certificates_of_no_use_are_refused_at_start(tmp_path, engine, authority, broken):
    pair = authority.issue("server")
    if broken:
        pair.key.write_text(broken)
    else:
        pair.key.write_bytes(authority.issue("other").key.read_bytes())
    if broken == "missing":
        pair.certificate.unlink()
    with pytest.raises(Misconfigured, match=r"access\.tls"), running(tmp_path, engine, tls=tls(pair)):
        pass


# The HTTP door ---------------------------------------------------------------------------------------


def test_an_openai_client_sends_its_key(tmp_path, engine):
    with running(tmp_path, engine, {"http_port": 0}) as server:
        url = f"http://127.0.0.1:{server.server.http_port}/v1"
        # A key that is for one tenant needs no header that says which.
        asked = {"model": "echo", "messages": [{"role": "user", "content": HELLO}], "max_tokens": 1}
        key = make_key(server, Role.CALLER)[1]
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert client.chat.completions.create(**asked).plaudit["handle"]
            assert [model.id for model in client.models.list()] == ["echo", "echo@0"]
            with pytest.raises(openai.PermissionDeniedError):
                client.chat.completions.create(**{**asked, "extra_headers": {"x-plaudit-tenant": OTHER.tenant}})
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError, match="no API key"):
                client.chat.completions.create(**asked)
            with pytest.raises(openai.AuthenticationError):
                client.models.list()


# Where it may listen ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", ""])
def test_beyond_loopback_a_server_needs_encryption_and_keys_or_is_told_otherwise(tmp_path, engine, host):
    with pytest.raises(Misconfigured, match="without encryption") as caught, running(tmp_path, engine, {"host": host}):
        pass
    assert caught.value.metadata["setting"] == "serve.insecure"
    if host == "0.0.0.0":
        told = {"host": host, "insecure": True}
        with running(tmp_path / "told", engine, told, required=False) as server, client_of(server) as client:
            assert client.generate("echo", HELLO, max_tokens=1).handle


def test_a_key_is_never_sent_in_clear_to_another_machine():
    with pytest.raises(Misconfigured, match="unencrypted"):
        Plaudit("plaudit.example:50051", key="plaudit_0_0")
    Plaudit("plaudit.example:50051", key="plaudit_0_0", plaintext=True).close()
    Plaudit("plaudit.example:50051").close()


# Limits ----------------------------------------------------------------------------------------------


def test_a_key_a_tenant_and_a_rater_have_limits_and_are_told_how_long_to_wait(tmp_path, engine):
    limits = {"key_per_minute": 6, "tenant_per_minute": 8, "rater_per_minute": 2, "raters_per_handle": 2}
    with running(tmp_path, engine, {"http_port": 0}, limits=limits) as server:
        first, second, third = (make_key(server, Role.CALLER, tenants=(ANY,))[1] for _ in range(3))
        ask = {"max_tokens": 1}
        with client_of(server, first) as client:
            reply = client.generate("echo", HELLO, tenant=OWN.tenant, **ask)
            for _ in range(2):
                reply.thumbs_up(rater="ana")
            with pytest.raises(RateLimited) as caught:
                reply.thumbs_up(rater="ana")
            assert caught.value.metadata == {"whose": "rater", "per_minute": "2"}
            assert 25 < caught.value.retry_seconds <= 30
            reply.thumbs_up(rater="eva")
            with pytest.raises(TooManyRaters):
                reply.thumbs_up(rater="ida")
            with pytest.raises(RateLimited) as caught:
                client.generate("echo", HELLO, tenant=OTHER.tenant, **ask)
            assert caught.value.metadata["whose"] == "key"
        with client_of(server, second) as client:
            for _ in range(2):
                client.generate("echo", HELLO, tenant=OWN.tenant, **ask)
            with pytest.raises(RateLimited) as caught:
                client.generate("echo", HELLO, tenant=OWN.tenant, **ask)
            assert caught.value.metadata["whose"] == "tenant"
            client.generate("echo", HELLO, tenant=OTHER.tenant, **ask)
        url = f"http://127.0.0.1:{server.server.http_port}/v1/models"
        with httpx.Client(trust_env=False, headers={"authorization": f"Bearer {third}"}) as plain:
            answers = [plain.get(url) for _ in range(7)]
        assert [each.status_code for each in answers] == [200] * 6 + [429]
        assert 5 <= int(answers[-1].headers["retry-after"]) <= 10
