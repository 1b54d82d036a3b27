"""Requests and feedback over a real channel, through the real engine, into the real log."""

import dataclasses
import math
import uuid

import grpc
import pytest
from plaudit import ordering
from plaudit.client import Plaudit
from plaudit.client.replies import Begun, Delta, Reply, drafts
from plaudit.domain import OptionScore
from plaudit.engine.protocol import ReleaseKey
from plaudit.errors import (
    DeadlinePassed,
    EmptyPrompt,
    HandleForged,
    HandleWrongRater,
    IncompleteRanking,
    InvalidField,
    InvalidText,
    OutOfScale,
    PlauditError,
    PromptTooLong,
    RetractionByOther,
    UndeclaredKind,
    UndeclaredReason,
    UnknownCandidate,
    UnknownDomain,
    UnknownFeedback,
    UnknownRelease,
    WrongAction,
)
from plaudit.eventlog import Topic
from plaudit.ordering import score_of
from plaudit.plugins import guard
from plaudit.serving.handle import answer_mark
from plaudit.testing.evidence import make_candidate
from plaudit.testing.serving import local_server
from plaudit.testing.waiting import wait_until
from plaudit.types import Choice, FeedbackKind, Message, Option, Purpose, Ranking, Rating, Scale, Thumbs
from plaudit.v1 import assistant_pb2, assistant_pb2_grpc, feedback_pb2
from plaudit_echo.plugin import Echo

HELLO = "Say hello."


def test_a_reply_is_recorded_with_what_was_served(local, client):
    reply = client.generate(
        "echo", HELLO, n=2, max_tokens=6, seed=5, end_user="eva", rater="ana", session_id="s1", token_ids=True
    )
    (interaction,) = local.records(Topic.INTERACTIONS)
    assert interaction.interaction_id == reply.interaction_id
    assert [c.candidate_id for c in interaction.candidates] == list(reply.candidate_ids)
    assert [c.displayed_text for c in interaction.candidates] == [c.text for c in reply.completions]
    assert [c.tokens for c in interaction.candidates] == [c.token_ids for c in reply.completions]
    assert [c.seed for c in interaction.candidates] == [5, 6]
    assert all(len(c.logprobs_raw) == len(c.logprobs_sampled) == len(c.tokens) for c in interaction.candidates)
    assert interaction.messages == (Message("user", HELLO),)
    assert interaction.session_id == "s1"
    assert (interaction.base_digest, interaction.base_dtype) == (local.engine.base_digest, "float32")
    # Nobody's name reaches the log.
    assert len(interaction.rater) == len(interaction.end_user) == 32


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(client):
    ask = {"max_tokens": 12, "n": 1, "token_ids": True}
    first, again, other = (client.generate("echo", HELLO, seed=seed, **ask) for seed in (1, 1, 2))
    assert first.completions[0].token_ids == again.completions[0].token_ids != other.completions[0].token_ids


def test_a_request_sent_again_under_its_id_gets_the_same_candidates(client):
    interaction_id = str(uuid.uuid4())
    first, again = (client.generate("echo", HELLO, n=2, interaction_id=interaction_id) for _ in range(2))
    assert first.candidate_ids == again.candidate_ids
    assert [c.text for c in first.completions] == [c.text for c in again.completions]


def test_another_text_under_the_same_interaction_id_has_another_mark():
    one, other = make_candidate("a"), make_candidate("b")
    marks = {
        answer_mark([one, other]),
        answer_mark([other, one]),
        answer_mark([one]),
        answer_mark([dataclasses.replace(one, displayed_text=other.displayed_text), other]),
    }
    assert len(marks) == 4
    # How it came about is not what people saw.
    assert answer_mark([dataclasses.replace(one, tokens=(1,), release_version=7), other]) in marks


def test_a_stream_gives_the_text_in_pieces_and_the_record_last(local, client):
    begun, *deltas, reply = client.stream("echo", HELLO, n=3, max_tokens=8, seed=3, token_ids=True)
    assert isinstance(begun, Begun)
    assert (begun.interaction_id, begun.candidate_ids) == (reply.interaction_id, reply.candidate_ids)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert isinstance(reply, Reply)
    (interaction,) = local.records(Topic.INTERACTIONS)
    for index, candidate in enumerate(interaction.candidates):
        assert "".join(delta.text for delta in deltas if delta.index == index) == candidate.text
    plain = client.generate("echo", HELLO, n=3, max_tokens=8, seed=3, token_ids=True)
    assert [c.token_ids for c in plain.completions] == [c.token_ids for c in reply.completions]


def test_a_choice_ranks_by_exact_probability_and_is_recorded_in_that_order(local, client):
    decision = client.choose("echo-choice", HELLO, ["yes", "no", Option("id-3", "perhaps")])
    assert math.isclose(sum(option.probability for option in decision.ranking), 1.0)
    assert [o.probability for o in decision.ranking] == sorted((o.probability for o in decision.ranking), reverse=True)
    # By the definition: p_i / p_j = exp(logprob_i - logprob_j).
    first, last = decision.ranking[0], decision.ranking[-1]
    assert math.isclose(first.probability / last.probability, math.exp(first.logprob - last.logprob), rel_tol=1e-6)
    (interaction,) = local.records(Topic.INTERACTIONS)
    assert [c.option_id for c in interaction.candidates] == [o.option_id for o in decision.ranking]
    assert [c.probability for c in interaction.candidates] == [o.probability for o in decision.ranking]
    # Nothing was drawn: the order was shown with certainty.
    assert [c.propensity for c in interaction.candidates] == [1.0] * 3
    assert interaction.order_logprob == 0.0


def test_an_option_that_begins_another_does_not_always_win(local, client):
    """The end of turn is scored too, so a beginning is no free lunch: p(option) is of writing it and nothing else."""
    decision = client.choose("echo-choice", HELLO, ["tea", "tea with milk"])
    (interaction,) = local.records(Topic.INTERACTIONS)
    shown = {option.option_id: option for option in decision.ranking}
    for candidate in interaction.candidates:
        assert candidate.tokens[-1] == local.engine.end_of_turn
        assert len(candidate.logprobs_sampled) == len(candidate.tokens)
        prompt = local.engine.encode(interaction.messages)
        key = ReleaseKey(str(interaction.channel), 0, candidate.release_digest)
        (alone,) = local.engine.score(prompt, [candidate.tokens], key, candidate.sampling.temperature)
        assert math.isclose(shown[candidate.option_id].logprob, math.fsum(alone), abs_tol=1e-3)


def test_exploring_draws_the_order_and_records_its_exact_probability(local, client):
    options = ["a", "b", "c"]  # as long as each other, so that none is sure to be first
    for _ in range(12):
        client.choose("echo-choice", HELLO, options, purpose=Purpose.EXPLORE)
    drawn = local.records(Topic.INTERACTIONS)
    assert len({tuple(c.option_id for c in interaction.candidates) for interaction in drawn}) > 1
    for interaction in drawn:
        scores = [math.fsum(c.logprobs_sampled) for c in interaction.candidates]
        factors = ordering.log_factors(scores, range(3))
        assert math.isclose(interaction.order_logprob, math.fsum(factors), abs_tol=1e-5)
        assert interaction.order_logprob < 0
        for candidate, factor in zip(interaction.candidates, factors, strict=True):
            assert math.isclose(candidate.propensity, math.exp(factor), rel_tol=1e-5)
        # Of being first, whatever came first.
        by_score = sorted(zip(scores, (c.probability for c in interaction.candidates), strict=True))
        assert [p for _, p in by_score] == sorted(p for _, p in by_score)


def test_a_request_to_explore_sent_again_draws_the_same_order(client):
    asked = {"purpose": Purpose.EXPLORE, "interaction_id": str(uuid.uuid4())}
    first, again = (client.choose("echo-choice", HELLO, ["yes", "no", "perhaps"], **asked) for _ in range(2))
    assert first.ranking == again.ranking


def test_a_domain_may_score_options_per_token():
    assert score_of((-1.0, -2.0, -3.0), OptionScore.SUM) == -6.0
    assert score_of((-1.0, -2.0, -3.0), OptionScore.MEAN) == -2.0


def test_feedback_is_recorded_under_a_pseudonym_before_it_is_acknowledged(local, client):
    reply = client.generate("echo", HELLO, n=2, max_tokens=4)
    up = reply.thumbs_up(1, rater="ana", reasons=["dull"])
    ranked = reply.rank([1, 0], rater="ana", session_id="s")
    thumbs, ranking = local.records(Topic.FEEDBACK)
    assert (thumbs.feedback_id, ranking.feedback_id) == (up.feedback_id, ranked.feedback_id)
    assert thumbs.act == Thumbs(reply.candidate_ids[1], up=True)
    assert thumbs.reasons == ("dull",)
    assert ranking.act == Ranking((reply.candidate_ids[1], reply.candidate_ids[0]))
    assert thumbs.rater == ranking.rater != "ana"
    assert thumbs.interaction_id == up.interaction_id == reply.interaction_id
    assert thumbs.accepted_at == up.accepted_at


def test_a_handle_that_names_a_rater_takes_nobody_else(local, client):
    reply = client.generate("echo", HELLO, max_tokens=4, rater="ana")
    with pytest.raises(HandleWrongRater):
        reply.thumbs_up(rater="bo")
    reply.thumbs_up()
    reply.thumbs_down(rater="ana")
    first, second = local.records(Topic.FEEDBACK)
    assert first.rater == second.rater != ""


def test_a_handle_is_all_that_feedback_needs(local, client):
    one, two = client.generate("echo", HELLO, max_tokens=4), client.generate("echo", HELLO, n=2, max_tokens=4)
    client.submit(feedback_pb2.Feedback(handle=one.handle, thumbs=feedback_pb2.Thumbs(up=True)))
    client.feedback_from_handle(one.handle).thumbs_up()
    kept = client.feedback_from_handle(two.handle)
    kept.choose(1, 0)
    kept.rank([1, 0])
    kept.rate(0.5, 1)
    acts = [feedback.act for feedback in local.records(Topic.FEEDBACK)]
    first, second = two.candidate_ids
    assert acts[:2] == [Thumbs(one.candidate_ids[0], up=True)] * 2
    assert acts[2:] == [Choice(second, first), Ranking((second, first)), Rating(second, 0.5)]
    for nobody in (lambda: kept.thumbs_up(2), lambda: kept.thumbs_up("#9999"), lambda: kept.thumbs_up("")):
        with pytest.raises(UnknownCandidate):
            nobody()


def test_retracting_anothers_act_or_another_interactions_is_refused_at_once(local, client):
    reply, other = client.generate("echo", HELLO, max_tokens=4), client.generate("echo", HELLO, max_tokens=4)
    given = reply.thumbs_up(rater="ana")
    for handle, rater, error in (
        (reply.handle, "bo", RetractionByOther),
        (reply.handle, "", RetractionByOther),
        (other.handle, "ana", UnknownFeedback),
    ):
        with pytest.raises(error):
            client.retract(handle, given.feedback_id, rater=rater)
    assert len(local.records(Topic.FEEDBACK)) == 1
    client.retract(reply.handle, given.feedback_id, rater="ana")


def test_a_retraction_is_recorded(local, client):
    reply = client.generate("echo", HELLO, max_tokens=4)
    given = reply.thumbs_up(rater="ana")
    client.retract(reply.handle, given.feedback_id, rater="ana")
    act, retraction = local.records(Topic.FEEDBACK)
    assert (retraction.feedback_id, retraction.rater) == (act.feedback_id, act.rater)


def test_feedback_without_an_id_gets_one(local, client):
    reply = client.generate("echo", HELLO, max_tokens=4)
    act = feedback_pb2.Feedback(
        handle=reply.handle, thumbs=feedback_pb2.Thumbs(candidate_id=reply.candidate_ids[0], up=True)
    )
    given = client.submit(act)
    assert uuid.UUID(given.feedback_id).version == 7


FEEDBACK_REFUSALS = {
    "forged": (lambda r, c: c.feedback_from_handle(r.handle[:-2] + "AA", r.candidate_ids).thumbs_up(), HandleForged),
    "undeclared kind": (lambda r, c: r.correct("better"), UndeclaredKind),
    "undeclared reason": (lambda r, c: r.thumbs_up(reasons=["rude"]), UndeclaredReason),
    "unknown candidate": (lambda r, c: r.thumbs_up("nobody"), UnknownCandidate),
    "ranking misses one": (lambda r, c: r.rank([0]), IncompleteRanking),
    "ranking names one twice": (lambda r, c: r.rank([0, 1, 1]), IncompleteRanking),
    "ranking of another": (lambda r, c: r.rank([0, "other"]), UnknownCandidate),
    "above the scale": (lambda r, c: r.rate(1.5), OutOfScale),
    "not a number": (lambda r, c: r.rate(math.nan), OutOfScale),
    "compared with itself": (lambda r, c: r.choose(0, 0), InvalidField),
    "session too long": (lambda r, c: r.thumbs_up(session_id="s" * 129), InvalidField),
    "rater too long": (lambda r, c: r.thumbs_up(rater="r" * 257), InvalidField),
    "rater with NUL": (lambda r, c: r.thumbs_up(rater="r\0"), InvalidText),
    "no act": (lambda r, c: c.submit(feedback_pb2.Feedback(handle=r.handle)), InvalidField),
    "id is no UUID": (
        lambda r, c: c.submit(feedback_pb2.Feedback(handle=r.handle, feedback_id="7")),
        InvalidField,
    ),
    "on a conversation": (lambda r, c: r.thumbs_up(whole_conversation=True), UndeclaredKind),
    "too many reasons": (lambda r, c: r.thumbs_up(reasons=["dull"] * 17), InvalidField),
}


@pytest.mark.parametrize("case", FEEDBACK_REFUSALS)
def test_bad_feedback_is_refused_and_leaves_no_record(local, client, case):
    act, error = FEEDBACK_REFUSALS[case]
    reply = client.generate("echo", HELLO, n=2, max_tokens=2)
    with pytest.raises(error):
        act(reply, client)
    assert local.records(Topic.FEEDBACK) == []


def test_an_act_on_a_whole_conversation_stands_beside_the_one_on_its_last_answer(tmp_path, tiny_engine):
    with local_server(tmp_path, tiny_engine, guard([Conversing()])) as server, Plaudit(server.target) as client:
        reply = client.generate(
            "echo", [Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "And?")], max_tokens=4
        )
        reply.thumbs_down(rater="ana")
        reply.thumbs_up(rater="ana", whole_conversation=True)
        reply.rate(0.5, rater="ana", whole_conversation=True)
        with pytest.raises(InvalidField, match="whole_conversation"):
            client.submit(
                feedback_pb2.Feedback(
                    handle=reply.handle, signal=feedback_pb2.Signal(name="like", value=1.0), whole_conversation=True
                )
            )
        acts = server.records(Topic.FEEDBACK)
    assert [act.whole_conversation for act in acts] == [False, True, True]
    # Three subjects: none replaces another.
    assert len({act.subject for act in acts}) == 3


class Conversing(Echo):
    @property
    def declaration(self):
        declared = super().declaration
        return dataclasses.replace(
            declared,
            conversations=True,
            kinds=declared.kinds | {FeedbackKind.SIGNAL},
            signals=(("like", Scale(low=0.0, high=1.0)),),
        )


def test_a_bulk_stream_acknowledges_each_item_in_order(local, client):
    reply = client.generate("echo", HELLO, n=2, max_tokens=2)
    give = drafts(reply.handle, reply.candidate_ids)
    acts = [give.thumbs_up("nobody") if i % 10 == 3 else give.rate(i / 1000) for i in range(700)]
    answers = list(client.submit_many(acts))
    assert [answer.index for answer in answers] == list(range(700))
    assert [answer.feedback_id for answer in answers] == [act.feedback_id for act in acts]
    refused = [answer for answer in answers if answer.error is not None]
    assert [answer.index for answer in refused] == [i for i in range(700) if i % 10 == 3]
    assert {type(answer.error) for answer in refused} == {UnknownCandidate}
    recorded = [feedback.feedback_id for feedback in local.records(Topic.FEEDBACK)]
    assert recorded == [answer.feedback_id for answer in answers if answer.error is None]


def ask(**fields):
    messages = fields.pop("messages", [assistant_pb2.Message(role="user", content=HELLO)])
    return assistant_pb2.GenerateRequest(**{"domain": "echo", "messages": messages, **fields})


def said(text, role="user"):
    return [assistant_pb2.Message(role=role, content=text)]


def sampled(**fields):
    return assistant_pb2.Sampling(**fields)


REQUEST_REFUSALS = {
    "no message": (ask(messages=[]), EmptyPrompt, None),
    "white space": (ask(messages=said(" \n\t")), EmptyPrompt, None),
    "NUL": (ask(messages=said("a\0b")), InvalidText, "messages[0].content"),
    "unknown role": (ask(messages=said("a", role="robot")), InvalidField, "messages[0].role"),
    "too many messages": (ask(messages=said("a") * 65), InvalidField, "messages"),
    "too much text": (ask(messages=said("a" * 65_537)), InvalidField, "messages[0].content"),
    "more than the context": (ask(messages=said("hello " * 9000)), PromptTooLong, None),
    "too many completions": (ask(n=9), InvalidField, "n"),
    "temperature above": (ask(sampling=sampled(temperature=2.5)), InvalidField, "sampling.temperature"),
    "temperature below": (ask(sampling=sampled(temperature=-0.1)), InvalidField, "sampling.temperature"),
    "temperature NaN": (ask(sampling=sampled(temperature=math.nan)), InvalidField, "sampling.temperature"),
    "top_p zero": (ask(sampling=sampled(top_p=0)), InvalidField, "sampling.top_p"),
    "top_p above": (ask(sampling=sampled(top_p=1.5)), InvalidField, "sampling.top_p"),
    "top_k above": (ask(sampling=sampled(top_k=1001)), InvalidField, "sampling.top_k"),
    "no tokens": (ask(sampling=sampled(max_tokens=0)), InvalidField, "sampling.max_tokens"),
    "too many tokens": (ask(sampling=sampled(max_tokens=513)), InvalidField, "sampling.max_tokens"),
    "too many stops": (ask(sampling=sampled(stop=["a"] * 9)), InvalidField, "sampling.stop"),
    "empty stop": (ask(sampling=sampled(stop=[""])), InvalidField, "sampling.stop[0]"),
    "long stop": (ask(sampling=sampled(stop=["a" * 65])), InvalidField, "sampling.stop[0]"),
    "tenant": (ask(tenant="No Tenant"), InvalidField, "tenant"),
    "no domain": (ask(domain=""), InvalidField, "domain"),
    "unknown domain": (ask(domain="chess"), UnknownDomain, None),
    "the other action": (ask(domain="echo-choice"), WrongAction, None),
    "unknown release": (ask(release_versions=[99]), UnknownRelease, None),
    "releases for another n": (ask(n=3, release_versions=[0, 0]), InvalidField, "release_versions"),
    "interaction id": (ask(interaction_id="seven"), InvalidField, "interaction_id"),
    "interaction id in capitals": (ask(interaction_id=str(uuid.uuid4()).upper()), InvalidField, "interaction_id"),
    "purpose": (ask(purpose=77), InvalidField, "purpose"),
    "session": (ask(session_id="s" * 129), InvalidField, "session_id"),
    "end user": (ask(end_user="s" * 257), InvalidField, "end_user"),
    "passages": (ask(passages=[assistant_pb2.Passage(text="p")] * 33), InvalidField, "passages"),
    "passage source": (ask(passages=[assistant_pb2.Passage(source="p" * 1025)]), InvalidField, "passages[0].source"),
}


@pytest.mark.parametrize("case", REQUEST_REFUSALS)
def test_a_bad_request_is_refused_by_reason_and_field(local, client, case):
    request, error, field = REQUEST_REFUSALS[case]
    with pytest.raises(error) as caught:
        client._once(client._stubs.assistant.Generate, request)
    if field is not None:
        assert caught.value.metadata["field"] == field
    assert local.records(Topic.INTERACTIONS) == []


CHOICE_REFUSALS = {
    "one option": ([("a", "yes")], "options"),
    "too many options": ([(str(i), f"yes {i}") for i in range(51)], "options"),
    "an id twice": ([("a", "yes"), ("a", "no")], "options"),
    "a text twice": ([("a", "yes"), ("b", "yes")], "options"),
    "an empty id": ([("", "yes"), ("a", "no")], "options[0].option_id"),
    "an empty text": ([("a", ""), ("b", "no")], "options[0].text"),
    "a long text": ([("a", "yes"), ("b", "n" * 4097)], "options[1].text"),
    "more than the context": ([("a", "yes"), ("b", "qz" * 2000)], "options[1].text"),
}


@pytest.mark.parametrize("case", CHOICE_REFUSALS)
def test_bad_options_are_refused_by_field(client, case):
    options, field = CHOICE_REFUSALS[case]
    with pytest.raises(InvalidField) as caught:
        client.choose("echo-choice", HELLO, [Option(name, text) for name, text in options])
    assert caught.value.metadata["field"] == field


def test_a_deadline_ends_the_call_and_frees_its_slot(local, client, stands):
    # The engine stands still. On a slow machine a deadline may pass before it has the call: then a later one does it.
    for seconds in (0.5, 5.0, 50.0):
        with stands(local.engine) as (reached, _):
            with pytest.raises(DeadlinePassed):
                client.generate("echo", HELLO, n=8, max_tokens=450, timeout=seconds)
            wait_until(lambda: local.metrics.requests_in_flight._value.get() == 0)
            wait_until(lambda: local.engine.load() == (0, 0))
        if reached.is_set():
            break
    assert reached.is_set()
    assert local.records(Topic.INTERACTIONS) == []


def test_a_caller_who_leaves_a_stream_frees_its_slots(local, client, stands):
    with stands(local.engine, after=20):
        stream = client.stream("echo", HELLO, n=4, seed=1, max_tokens=450)
        next(stream)
        wait_until(lambda: local.engine.load()[0] == 4)
        stream.close()
        wait_until(lambda: local.engine.load() == (0, 0))


def test_an_evaluation_is_recorded_as_one(local, client):
    client.generate("echo", HELLO, max_tokens=2, purpose=Purpose.EVALUATE)
    (interaction,) = local.records(Topic.INTERACTIONS)
    assert interaction.purpose is Purpose.EVALUATE


def test_a_trace_goes_from_the_call_into_the_record(local):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with grpc.insecure_channel(local.target) as channel:
        stub = assistant_pb2_grpc.AssistantServiceStub(channel)
        stub.Generate(
            ask(sampling=sampled(max_tokens=2)), metadata=[("traceparent", f"00-{trace}-00f067aa0ba902b7-01")]
        )
    from plaudit.v1 import events_pb2

    consumer = local.log.consumer((Topic.INTERACTIONS,), "test", dict)
    (record,) = consumer.poll(1.0, 10)
    consumer.close()
    traceparent = events_pb2.Envelope.FromString(record.value).traceparent
    assert traceparent.startswith(f"00-{trace}-")
    assert "00f067aa0ba902b7" not in traceparent


def test_every_refusal_is_a_class_of_the_tree():
    raised = [error for _, error, _ in REQUEST_REFUSALS.values()] + [error for _, error in FEEDBACK_REFUSALS.values()]
    assert all(issubclass(error, PlauditError) for error in raised)
