"""The client against real servers that fail in chosen ways."""

import asyncio
import inspect
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from plaudit.client import AsyncPlaudit, Plaudit
from plaudit.client import calls as client_calls
from plaudit.client.messages import bulk_messages
from plaudit.client.replies import drafts
from plaudit.errors import (
    DeadlinePassed,
    InvalidField,
    LogUnavailable,
    Misconfigured,
    NotServing,
    QueueFull,
    UnknownCandidate,
)
from plaudit.metrics import Metrics, to_markdown
from plaudit.serving.interceptors import CallInterceptor
from plaudit.types import Message, Passage, Purpose
from plaudit.v1 import (
    assistant_pb2,
    assistant_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
)
from plaudit.wire import REQUEST_ID_KEY
from prometheus_client import CollectorRegistry


class Flaky(
    assistant_pb2_grpc.AssistantServiceServicer,
    feedback_pb2_grpc.FeedbackServiceServicer,
    releases_pb2_grpc.ReleaseServiceServicer,
):
    """Raises the errors of `planned`, one a call, and then answers; keeps every request."""

    def __init__(self):
        self.planned = []
        self.seen = []

    def _answer(self, request):
        self.seen.append(request)
        if self.planned:
            raise self.planned.pop(0)

    def Generate(self, request, context):
        self._answer(request)
        return assistant_pb2.GenerateResponse(
            interaction_id=request.interaction_id,
            handle="handle",
            completions=[
                assistant_pb2.Completion(candidate_id=name, text=name.upper(), finish_reason=1) for name in ("a", "b")
            ],
        )

    def Choose(self, request, context):
        self._answer(request)
        ranking = [assistant_pb2.RankedOption(option_id=o.option_id, candidate_id=o.text) for o in request.options]
        return assistant_pb2.ChooseResponse(
            interaction_id=request.interaction_id,
            ranking=ranking,
            handle="handle",
            decision=ranking[1].option_id,
        )

    def SubmitFeedback(self, request, context):
        self._answer(request)
        return feedback_pb2.SubmitFeedbackResponse(feedback_id=request.feedback.feedback_id)

    def StreamFeedback(self, request_iterator, context):
        for index, request in enumerate(request_iterator):
            yield feedback_pb2.StreamFeedbackResponse(
                index=index, feedback_id=request.feedback.feedback_id, accepted=index != 1, reason=22 * (index == 1)
            )

    def PromoteRelease(self, request, context):
        self._answer(request)
        return releases_pb2.PromoteReleaseResponse(state=releases_pb2.ChannelState(channel=request.channel, live=1))


@pytest.fixture
def served():
    servicer = Flaky()
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[CallInterceptor(Metrics(CollectorRegistry()), 2**20)])
    assistant_pb2_grpc.add_AssistantServiceServicer_to_server(servicer, server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(servicer, server)
    releases_pb2_grpc.add_ReleaseServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def client(served):
    with Plaudit(served[1], timeout=300.0) as client:
        yield client


@pytest.mark.parametrize("error", [QueueFull, NotServing, LogUnavailable])
def test_a_busy_service_is_asked_again_with_the_same_idempotency_key(served, client, error):
    served[0].planned = [error(), error()]
    reply = client.generate("echo", "hi")
    assert len(served[0].seen) == 3
    assert {request.interaction_id for request in served[0].seen} == {reply.interaction_id}


def test_feedback_sent_again_is_the_same_act(served, client):
    reply = client.generate("echo", "hi")
    served[0].seen.clear()
    served[0].planned = [LogUnavailable()]
    given = reply.thumbs_up(rater="ana")
    first, second = (request.feedback for request in served[0].seen)
    assert first == second
    assert given.feedback_id == first.feedback_id != ""


def test_a_refusal_is_not_tried_again(served, client):
    served[0].planned = [InvalidField("n is 9", field="n")]
    with pytest.raises(InvalidField) as caught:
        client.generate("echo", "hi")
    assert caught.value.metadata == {"field": "n"}
    assert len(served[0].seen) == 1


def test_a_client_tries_for_as_long_as_it_says_and_ends_with_the_last_error(served):
    # On a slow machine a patience may be over after a try or two: then a longer one has more.
    for patience in (1.5, 6.0, 24.0):
        served[0].planned = [QueueFull() for _ in range(99)]
        served[0].seen.clear()
        began = time.monotonic()
        with Plaudit(served[1], patience=patience) as client, pytest.raises(QueueFull):
            client.generate("echo", "hi")
        assert time.monotonic() - began >= patience
        if len(served[0].seen) >= 3:
            break
    assert len(served[0].seen) >= 3
    served[0].seen.clear()
    with Plaudit(served[1], patience=0.0) as client, pytest.raises(QueueFull):
        client.generate("echo", "hi")
    assert len(served[0].seen) == 1


@pytest.mark.apart
def test_a_server_that_is_back_is_found_before_the_client_gives_up(served, free_port):
    """The library's own wait before it connects again grows to two minutes; ours stays below a second."""
    port = free_port()
    with Plaudit(f"127.0.0.1:{port}", patience=0.0) as client:
        # An outage: long enough for the library's waits to have grown to 0.1 * 1.6^n s.
        for _ in range(30):
            with pytest.raises(NotServing):
                client.generate("echo", "hi")
            time.sleep(0.1)
        server = grpc.server(ThreadPoolExecutor(2))
        assistant_pb2_grpc.add_AssistantServiceServicer_to_server(served[0], server)
        assert server.add_insecure_port(f"127.0.0.1:{port}") == port
        server.start()
        try:
            failed = 0
            while failed < 40:
                try:
                    client.generate("echo", "hi")
                    break
                except NotServing:
                    failed += 1
                    time.sleep(0.05)
            # Counted in tries, not seconds: 40 tries of 0.05 s are two of the longest waits.
            assert failed < 40
        finally:
            server.stop(0).wait()


def test_a_target_on_this_machine_ignores_proxies(served, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Plaudit(served[1], patience=0.0, timeout=300.0) as client:
        assert client.generate("echo", "hi").text == "A"


def test_an_error_names_the_target_and_the_proxy_in_between(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Plaudit("plaudit.example:50051", patience=0.0, timeout=300.0) as client, pytest.raises(NotServing) as caught:
        client.generate("echo", "hi")
    assert "plaudit.example:50051" in caught.value.message
    assert "http_proxy" in caught.value.message


@pytest.mark.parametrize(
    ("call", "field", "words"),
    [
        (lambda c: c.generate("echo", None), "messages", "send a text"),
        (lambda c: c.generate("echo", [{"role": "user"}]), "messages[0].content", "content"),
        (lambda c: c.generate("echo", [7]), "messages[0]", "Message("),
        (lambda c: c.generate("echo", [{"role": "tool", "content": "x"}]), "messages[0].role", "system, developer"),
        (
            lambda c: c.generate("echo", [{"role": "user", "content": "x", "tool_calls": [1]}]),
            "messages[0].tool_calls",
            "leave it out",
        ),
        (lambda c: c.generate("echo", "hi", purpose="play"), "purpose", "serve, explore or evaluate"),
        (lambda c: c.generate("echo", "hi", passages=["a text"]), "passages", "Passage("),
        (lambda c: c.generate("echo", "hi", tags={"page": 3}), "tags", "3"),
        (lambda c: c.choose("echo", "hi", "yes"), "options", "in a list"),
        (lambda c: c.submit({"thumbs": True}), "act", "drafts(handle)"),
        (lambda c: c.feedback_from_handle("h").thumbs_up(None), "candidate_id", "place"),
        (lambda c: c.feedback_from_handle("h").thumbs_up(rater=3), "rater", "3"),
        (lambda c: c.feedback_from_handle("h").thumbs_up(reason="dull"), "reason", "did you mean 'reasons'?"),
        (lambda c: c.feedback_from_handle("h").rank("ab"), "ranking", "[1, 0]"),
        (lambda c: c.feedback_from_handle("h").rate("good"), "value", "good"),
        (lambda c: c.promote("echo/default", -1), "version", "-1"),
        (lambda c: c.feedback_from_handle("h").rate(None), "value", "send no act"),
        (lambda c: c.feedback_from_handle("h").rate(10**400), "value", "cannot be sent"),
        (lambda c: c.feedback_from_handle("h").correct(None), "text", "send no act"),
        (lambda c: c.feedback_from_handle("h").thumbs_up(reasons="dull"), "reasons", "list of texts"),
        (lambda c: c.generate("echo", "hi", temperature=10**400), "temperature", "cannot be sent"),
        (lambda _: Plaudit("http://127.0.0.1:8000"), "target", "127.0.0.1:8000"),
        (lambda _: Plaudit(None), "target", "host:port"),
        (lambda _: Plaudit("plaudit.example"), "target", "plaudit.example:50051"),
        (lambda c: c.close() or c.generate("echo", "hi"), "client", "closed"),
        (lambda c: c.close() or list(c.stream("echo", "hi")), "client", "closed"),
        (lambda c: c.generate("echo", "hi", max_token=3), "max_token", "did you mean 'max_tokens'?"),
        (lambda c: c.generate("echo", "hi", n=-1), "n", "-1"),
        (lambda c: c.generate("echo", "hi", temperature="warm"), "temperature", "warm"),
        (lambda c: c.choose("echo", "hi", [1, 2]), "options", "Option("),
        (lambda c: c.choose("echo", "hi", ["a", "b"], release_versions=(1,)), "release_versions", "release_version"),
    ],
)
def test_a_mistake_is_the_clients_own_error_and_says_what_to_write(served, client, call, field, words):
    with pytest.raises(InvalidField) as caught:
        call(client)
    assert caught.value.metadata["field"] == field
    assert words in caught.value.message
    assert not served[0].seen, "nothing was sent"


def test_messages_may_be_dictionaries_as_other_clients_write_them(served, client):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    client.generate(
        "echo", [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts, "name": "ana"}]
    )
    assert [(m.role, m.content) for m in served[0].seen[0].messages] == [("system", "be kind"), ("user", "hi")]


def test_an_asyncio_client_outside_its_loop_says_what_to_do(served):
    with pytest.raises(Misconfigured, match="async with AsyncPlaudit"):
        AsyncPlaudit(served[1])

    async def made():
        client = AsyncPlaudit(served[1])
        await client.close()
        return client

    async def used(client):
        await client.generate("echo", "hi")

    async def closed():
        async with AsyncPlaudit(served[1]) as client:
            pass
        await client.generate("echo", "hi")

    with pytest.raises(InvalidField, match="closed"):
        asyncio.run(closed())
    client = asyncio.run(made())
    with pytest.raises(Misconfigured, match="one per loop"):
        asyncio.run(used(client))


def test_all_attempts_share_one_deadline(served, client):
    served[0].planned = [QueueFull() for _ in range(50)]
    with Plaudit(served[1], patience=60.0) as client, pytest.raises((DeadlinePassed, QueueFull)):
        client.generate("echo", "hi", timeout=0.5)
    assert len(served[0].seen) < 20


def test_a_move_of_a_release_is_not_tried_again_because_it_has_no_key(served, client):
    served[0].planned = [NotServing()]
    with pytest.raises(NotServing):
        client.promote("echo/default", 1)
    assert len(served[0].seen) == 1


def test_nobody_at_the_target_is_not_serving():
    with (
        Plaudit("127.0.0.1:1", patience=0.0, timeout=300.0) as client,
        pytest.raises(NotServing, match=r"nothing answers at 127\.0\.0\.1:1;.*plaudit serve"),
    ):
        client.generate("echo", "hi")


def test_who_waits_for_a_server_is_told_for_how_long_at_most(caplog):
    with Plaudit("127.0.0.1:1", patience=2.0, timeout=300.0) as client, pytest.raises(NotServing):
        client.generate("echo", "hi")
    assert re.search(r"trying again for up to [0-2] s", caplog.text)


def test_options_become_fields(served, client):
    client.generate(
        "echo",
        [Message("system", "be brief"), Message("user", "hi")],
        n=2,
        temperature=0.0,
        max_tokens=5,
        stop=["\n"],
        seed=0,
        tenant="t",
        rater="ana",
        purpose=Purpose.EXPLORE,
        passages=[Passage("p", "text", "source")],
        release_versions=[3],
    )
    (request,) = served[0].seen
    assert [message.role for message in request.messages] == ["system", "user"]
    # Zero is not the same as absent: greedy, and seed 0.
    assert request.sampling.HasField("temperature")
    assert request.HasField("seed")
    assert not request.sampling.HasField("top_p")
    assert (request.n, request.tenant, request.rater, list(request.release_versions)) == (2, "t", "ana", [3])
    assert request.purpose == assistant_pb2.PURPOSE_EXPLORE
    assert request.passages[0].source == "source"


def test_a_stop_may_be_one_text_as_openais_clients_write_it(served, client):
    client.generate("echo", "hi", stop="END")
    assert list(served[0].seen[0].sampling.stop) == ["END"]


def test_candidates_are_named_by_place_object_or_id(served, client):
    reply = client.generate("echo", "hi")
    served[0].seen.clear()
    reply.choose(1, reply.completions[0])
    reply.choose("b", 0, tie=True)
    first, second = (request.feedback.choice for request in served[0].seen)
    assert (first.chosen_id, first.other_id, first.tie_offered) == ("b", "a", False)
    assert (second.chosen_id, second.other_id, second.tie, second.tie_offered) == ("b", "a", True, True)
    with pytest.raises(UnknownCandidate):
        reply.thumbs_up(2)


def test_every_kind_of_act_is_the_message_of_its_kind(client):
    give = drafts("handle", ("a", "b"))
    acts = {
        "thumbs": give.thumbs_up(),
        "choice": give.choose(0, 1),
        "ranking": give.rank([1, 0]),
        "correction": give.correct("better"),
        "rating": give.rate(0.5),
        "label": give.label("yes"),
        "signal": give.signal("like"),
        "comment": give.comment("so so"),
    }
    assert {name: act.WhichOneof("act") for name, act in acts.items()} == {name: name for name in acts}
    assert len({act.feedback_id for act in acts.values()}) == len(acts)
    assert give.thumbs_down().thumbs.up is False


def test_feedback_from_a_kept_handle_carries_it(served, client):
    client.feedback_from_handle("kept").thumbs_up("a", rater="ana", session_id="s", reasons=["dull"])
    act = served[0].seen[0].feedback
    assert (act.handle, act.rater, act.session_id, list(act.reasons)) == ("kept", "ana", "s", ["dull"])


def test_a_bulk_refusal_comes_as_its_error(client):
    give = drafts("handle", ("a",))
    answers = list(client.submit_many(iter([give.thumbs_up() for _ in range(3)])))
    assert [type(answer.error) for answer in answers] == [type(None), LogUnavailable, type(None)]


def test_acts_of_a_list_go_together_within_what_a_message_may_hold():
    give = drafts("handle", ("a",))
    many = [give.thumbs_up() for _ in range(600)]
    messages = list(bulk_messages(many))
    assert [act for message in messages for act in message.acts] == many
    assert max(len(message.acts) for message in messages) == 256
    long = [give.comment("x" * 20_000) for _ in range(5)] + [give.comment("x" * 100_000), give.thumbs_up()]
    messages = list(bulk_messages(long))
    assert [len(message.acts) for message in messages] == [2, 2, 1, 1, 1]
    assert list(bulk_messages([])) == []


def test_acts_of_an_iterator_go_one_by_one_because_the_next_may_wait_for_an_answer():
    acts = [drafts("handle", ("a",)).thumbs_up() for _ in range(2)]
    messages = list(bulk_messages(iter(acts)))
    assert [(message.feedback, len(message.acts)) for message in messages] == [(act, 0) for act in acts]


def test_texts_are_options_of_their_own_name(client):
    decision = client.choose("echo-choice", "hi", ["yes", "no"])
    assert [option.option_id for option in decision.ranking] == ["yes", "no"]
    assert decision.decided is decision.ranking[1]


def test_the_asyncio_client_retries_streams_acts_and_maps_errors(served):
    async def talk():
        async with AsyncPlaudit(served[1], timeout=300.0) as client:
            served[0].planned = [QueueFull()]
            reply = await client.generate("echo", "hi")
            assert len(served[0].seen) == 2
            given = await reply.thumbs_up(rater="ana")
            assert given.feedback_id == served[0].seen[-1].feedback.feedback_id
            served[0].planned = [InvalidField("n is 9", field="n")]
            with pytest.raises(InvalidField):
                await client.generate("echo", "hi")
            decision = await client.choose("echo-choice", "hi", ["yes", "no"])
            assert len(decision.ranking) == 2

    asyncio.run(talk())


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def methods(cls):
        shown = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
        return {name: list(inspect.signature(value).parameters.values()) for name, value in shown.items()}

    plain, asynchronous = methods(Plaudit), methods(AsyncPlaudit)
    assert [*plain] == [*asynchronous]
    for name, parameters in plain.items():
        assert [(p.name, p.kind, p.default) for p in parameters] == [
            (p.name, p.kind, p.default) for p in asynchronous[name]
        ], name


class FailedCall(grpc.RpcError):
    """A failed call as grpc shows it."""

    def __init__(self, code, *trailers):
        self.code, self.trailing_metadata, self.details = (lambda: code), (lambda: trailers), (lambda: "")


def test_a_deadline_that_passes_while_grpc_connects_says_that_nobody_is_there():
    away, late = FailedCall(grpc.StatusCode.UNAVAILABLE), FailedCall(grpc.StatusCode.DEADLINE_EXCEEDED)
    patience = client_calls.Patience(None, "plaudit.example:50051", 3.0)
    assert isinstance(patience.failed(late), DeadlinePassed), "a server may be slow"
    assert isinstance(patience.failed(away), client_calls.Unreached)
    told = patience.failed(late)
    assert isinstance(told, client_calls.Unreached)
    assert isinstance(told.error, NotServing)
    assert "plaudit.example:50051" in told.error.message
    answered = FailedCall(grpc.StatusCode.DEADLINE_EXCEEDED, (REQUEST_ID_KEY, "r"))
    assert isinstance(patience.failed(answered), DeadlinePassed), "a server that came up in between, and was slow"


@pytest.mark.apart
def test_a_client_that_starts_first_waits_for_its_server(served, caplog, monkeypatch, free_port):
    # Longer than it would ask a busy one again.
    monkeypatch.setattr(client_calls, "PATIENCE_SECONDS", 0.2)
    target = f"127.0.0.1:{free_port()}"
    server = grpc.server(ThreadPoolExecutor(4))
    assistant_pb2_grpc.add_AssistantServiceServicer_to_server(served[0], server)

    def start_late():
        ends = time.monotonic() + 300
        while not caplog.records and time.monotonic() < ends:  # until the client has found nobody and says so
            time.sleep(0.01)
        time.sleep(1.0)
        server.add_insecure_port(target)
        server.start()

    async def ask():
        async with AsyncPlaudit(target, timeout=300.0) as client:
            return (await client.generate("echo", "hi")).text

    late = threading.Thread(target=start_late)
    late.start()
    try:
        with Plaudit(target, timeout=300.0) as client:
            assert client.generate("echo", "hi").text == "A"
        assert asyncio.run(ask()) == "A"
    finally:
        late.join()
        server.stop(0).wait()
    assert [target in record.getMessage() for record in caplog.records] == [True], "said once, with the target"
    with Plaudit("127.0.0.1:1", timeout=3.0) as client, pytest.raises(NotServing, match=r"127\.0\.0\.1:1"):
        client.generate("echo", "hi")


# What `pip install plaudit` brings, and the standard library.
CLIENT_ALONE = ("grpc", "google", "grpc_status", "tenacity", "typing_extensions", "plaudit")


@pytest.mark.apart
def test_the_client_needs_nothing_but_what_it_is_installed_with():
    """Every other import is refused, as if it were not installed."""
    code = f"""
import sys
allowed = {{*sys.stdlib_module_names, *{CLIENT_ALONE!r}}}
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{{name}} is not of the client", name=name)
sys.meta_path.insert(0, Refuses())
import plaudit.client, plaudit.domain, plaudit.types
assert not {{"torch", "sqlalchemy", "pydantic"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_docs_metrics_is_what_the_code_defines():
    from pathlib import Path

    written = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert written == to_markdown(Metrics(CollectorRegistry())), "run: python -m plaudit.metrics > docs/metrics.md"
