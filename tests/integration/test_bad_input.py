"""docs/serving.md, "Bad input of choices": every row over gRPC; it is answered by name, and nothing is lost by it."""

import dataclasses
import itertools
import math
import re
import threading
import time
from pathlib import Path

import grpc
import pytest
from plaudit.client import Plaudit
from plaudit.errors import DeadlinePassed
from plaudit.eventlog import Topic
from plaudit.evidence.join import Join
from plaudit.evidence.store import EvidenceStore
from plaudit.plugins import guard
from plaudit.settings import ChannelSettings, DecisionSettings, JoinSettings
from plaudit.testing.serving import local_server, serve_settings
from plaudit.testing.waiting import wait_until
from plaudit.types import Channel, FeedbackKind
from plaudit.v1 import assistant_pb2, assistant_pb2_grpc, errors_pb2, feedback_pb2, feedback_pb2_grpc
from plaudit.wire import from_call
from plaudit_echo.plugin import EchoChoice

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
SHOWN = 2  # places of the slate
TOKENLESS = "\u200b"


class Slate(EchoChoice):
    """A slate of two places, of which people like and label items, and rank all."""

    gate = threading.Event()
    parsed = 0

    @property
    def declaration(self):
        kinds = frozenset({FeedbackKind.LABEL, FeedbackKind.CHOICE, FeedbackKind.SIGNAL, FeedbackKind.RANKING})
        return dataclasses.replace(super().declaration, name="slate", kinds=kinds, place_weights=(1.0,) * SHOWN)

    def render(self, request):
        if request.messages[-1].content == "sleep":
            self.gate.wait()
        if request.messages[-1].content == "nonsense":
            return None
        return super().render(request)

    def parse(self, prompt, output):
        if output.startswith("slow"):
            time.sleep(0.2)
            type(self).parsed += 1
        return super().parse(prompt, output)


@pytest.fixture
def served(tmp_path, tiny_engine, monkeypatch):
    """A server of the slate, its stubs, and one good answer whose feedback is what the acts are about."""
    encode = tiny_engine.encode_text
    # Some tokenizers drop a text or its capitals; that of the tiny model keeps every byte.
    monkeypatch.setattr(tiny_engine, "encode_text", lambda text: encode(text.replace(TOKENLESS, "").lower()))
    wrong = ChannelSettings(decision=DecisionSettings(costs=(("no such label", "yes", 2.0),)))
    settings = serve_settings(tmp_path / "data").model_copy(update={"channels": {"slate/wrong": wrong}})
    Slate.gate.clear()
    plugins = guard([Slate()], budget_seconds=3.0)
    with (
        local_server(settings.data_dir, tiny_engine, plugins, settings=settings) as server,
        Plaudit(server.target, patience=0.0, timeout=60.0) as client,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield (
            server,
            client,
            assistant_pb2_grpc.AssistantServiceStub(channel),
            feedback_pb2_grpc.FeedbackServiceStub(channel),
        )
        Slate.gate.set()


def choose(*texts, said="tea?", domain="slate", tenant=""):
    options = [text if isinstance(text, tuple) else (f"id-{at}", text) for at, text in enumerate(texts)]
    return assistant_pb2.ChooseRequest(
        domain=domain,
        tenant=tenant,
        messages=[assistant_pb2.Message(role="user", content=said)],
        options=[assistant_pb2.Option(option_id=name, text=text) for name, text in options],
    )


REQUESTS = {
    "no options, of a domain that makes none": choose(),
    "one option": choose("a"),
    "more than 50 options": choose(*map(str, range(51))),
    "two options of one id": choose(("x", "a"), ("x", "b")),
    "two options of one text": choose(("x", "a"), ("y", "a")),
    "two options that the model reads as one": choose("milk", "MILK"),
    "an option of no tokens": choose("a", TOKENLESS),
    "an option without a text or an id": choose("a", ""),
    "an option of more than 4,096 bytes": choose("a", "b" * 4097),
    "an option that does not fit behind the prompt": choose("a", "qz" * 2000),
    "an option with a NUL byte": choose("a", "b\0"),
    "costs that name a label which the domain does not declare": choose("a", "b", tenant="wrong"),
    "a plugin that sleeps": choose("a", "b", said="sleep"),
    "a plugin that returns nonsense": choose("a", "b", said="nonsense"),
}


def about(handle, **act):
    return feedback_pb2.SubmitFeedbackRequest(feedback=feedback_pb2.Feedback(handle=handle, **act))


def label(place, value):
    return {"label": feedback_pb2.Label(candidate_id=f"#{place}", value=value)}


def signal(place, value, name="like"):
    return {"signal": feedback_pb2.Signal(candidate_id=f"#{place}", name=name, value=value)}


ACTS = {
    "a label that is not declared": label(0, "perhaps"),
    "a signal that is not declared": signal(0, 1.0, "stare"),
    "a signal or rating outside its scale, or not a number": signal(0, math.nan),
    "feedback on an option that the request did not have": signal(7, 1.0),
    "feedback on an item of a slate that was not shown": signal(SHOWN, 1.0),
    "a ranking that leaves options out": {"ranking": feedback_pb2.Ranking(candidate_ids=["#0", "#1"])},
    "a choice of an option over itself": {"choice": feedback_pb2.Choice(chosen_id="#0", other_id="#0")},
}


def documented():
    """Rows of the page: what comes in, and the status and reason that answer it."""
    page = PAGE.read_text(encoding="utf-8").split("## Bad input of choices")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| `(\w+)` \| `(\w+)` \|", page, re.M)
    return {what: (status, reason) for what, status, reason in rows}


def refusal(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    error = from_call(caught.value)
    return error.code, error.reason


def test_the_page_has_a_row_for_every_case_and_no_other():
    assert documented().keys() == REQUESTS.keys() | ACTS.keys()


def test_bad_requests_are_answered_as_documented_and_good_ones_between_them_are_served(served):
    server, client, assistant, _ = served
    good = []
    for what, request in REQUESTS.items():
        assert (what, refusal(assistant.Choose, request)) == (what, documented()[what])
        good.append(client.choose("slate", "tea?", ["a", "b"]).interaction_id)
    assert [record.interaction_id for record in server.records(Topic.INTERACTIONS)] == good


def test_a_domain_that_reads_options_slowly_stops_when_the_callers_time_is_over(served, monkeypatch):
    server, client, _, _ = served
    monkeypatch.setattr(Slate, "parsed", 0)
    with pytest.raises(DeadlinePassed):
        client.choose("slate", "tea?", [f"slow {place}" for place in range(50)], timeout=0.5)
    wait_until(lambda: not server.metrics.requests_in_flight._value.get())
    # All fifty would be ten seconds.
    assert Slate.parsed < 25


def test_bad_acts_are_answered_as_documented_and_lose_no_good_one(served):
    server, client, _, feedback = served
    answer = client.choose("slate", "tea?", ["a", "b", "c"])
    answer.label("yes", answer.candidate_ids[0], rater="ann")
    for what, act in ACTS.items():
        assert (what, refusal(feedback.SubmitFeedback, about(answer.handle, **act))) == (what, documented()[what])
    answer.signal("like", 1.0, answer.candidate_ids[0], rater="ann")
    store = EvidenceStore(server.settings.store_url)
    join = Join(server.log, store, guard([Slate()]), JoinSettings())
    while join.run_once(0.1):
        pass
    counts = store.counts(Channel("slate", "default"))
    join.close()
    store.close()
    assert (counts.acknowledged, counts.joined, counts.rejected) == (2, 2, 0)


def test_a_bulk_answers_each_act_by_itself(served):
    _, client, _, feedback = served
    handle = client.choose("slate", "tea?", ["a", "b", "c"]).handle
    acts = [signal(0, 1.0), *ACTS.values(), signal(1, 0.0)]
    stream = (feedback_pb2.StreamFeedbackRequest(feedback=about(handle, **act).feedback) for act in acts)
    answers = list(feedback.StreamFeedback(stream, timeout=60))
    assert [answer.accepted for answer in answers] == [True, *[False] * len(ACTS), True]


def test_acts_that_come_together_are_answered_together_and_each_by_itself(served):
    _, client, _, feedback = served
    handle = client.choose("slate", "tea?", ["a", "b", "c"]).handle
    acts = [about(handle, **act).feedback for act in (signal(0, 1.0), *ACTS.values(), signal(1, 0.0))]
    messages = [
        feedback_pb2.StreamFeedbackRequest(acts=acts),
        feedback_pb2.StreamFeedbackRequest(feedback=acts[0]),
        feedback_pb2.StreamFeedbackRequest(acts=acts[:1] * 257),
        feedback_pb2.StreamFeedbackRequest(feedback=acts[0], acts=acts[:2]),
        feedback_pb2.StreamFeedbackRequest(acts=acts[:1] * 256),
        feedback_pb2.StreamFeedbackRequest(acts=acts[-1:]),
    ]
    answers = list(feedback.StreamFeedback(iter(messages), timeout=60))
    assert [len(answer.answers) for answer in answers] == [len(acts), 0, 0, 0, 256, 1]
    assert [one.accepted for one in answers[0].answers] == [True, *[False] * len(ACTS), True]
    assert [answer.accepted for answer in answers] == [False, True, False, False, True, True]
    assert {answers[place].reason for place in (2, 3)} == {errors_pb2.ERROR_REASON_INVALID_FIELD}
    # Places in the stream count every act, also those of a message that was refused as a whole.
    sizes = [max(1, len(message.acts)) for message in messages]
    assert [answer.index for answer in answers] == [0, *itertools.accumulate(sizes[:-1])]
    assert all(
        [one.index for one in answer.answers] == list(range(answer.index, answer.index + len(answer.answers)))
        for answer in answers
    )


def test_a_message_of_very_many_acts_is_refused_by_a_short_answer(served):
    feedback = served[3]
    many = feedback_pb2.StreamFeedbackRequest(acts=[feedback_pb2.Feedback()] * 100_000)
    (answer,) = feedback.StreamFeedback(iter([many]), timeout=60)
    assert answer.reason == errors_pb2.ERROR_REASON_INVALID_FIELD
    assert answer.ByteSize() < many.ByteSize() / 100
