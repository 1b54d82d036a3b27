"""The codec: everything that goes in comes out, and nothing that is not a record gets through."""

import contextlib
import dataclasses
import datetime as dt
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plaudit import types
from plaudit.errors import PlauditError, RecordUnusable, Undecodable
from plaudit.eventlog import codec
from plaudit.v1 import errors_pb2, events_pb2, releases_pb2

NOW = dt.datetime(2027, 3, 1, 12, 0, 0, 123456, dt.UTC)
CHANNEL = types.Channel("instruction", "acme")

texts = st.text(max_size=30)  # hypothesis makes no lone surrogates unless asked: they are not Unicode text
names = st.text(min_size=1, max_size=20)
plain = st.text(alphabet="abcdefghij-_0123456789", min_size=1, max_size=10)
channels = st.builds(types.Channel, plain, plain)
moments = st.datetimes(timezones=st.just(dt.UTC))
uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
floats32 = st.floats(width=32, allow_nan=False)
floats64 = st.floats(allow_nan=False)
# What people write: decimals that a 32-bit float holds only nearly.
decimals = st.integers(0, 2000).map(lambda thousandths: thousandths / 1000)

samplings = st.builds(
    types.Sampling,
    temperature=decimals,
    top_p=decimals,
    top_k=uint32,
    max_tokens=uint32,
    stop=st.lists(texts, max_size=2).map(tuple),
)
candidates = st.builds(
    types.Candidate,
    candidate_id=names,
    release_version=uint32,
    release_digest=texts,
    tokens=st.lists(uint32, max_size=4).map(tuple),
    logprobs_raw=st.lists(floats32, max_size=4).map(tuple),
    logprobs_sampled=st.lists(floats32, max_size=4).map(tuple),
    text=texts,
    displayed_text=texts,
    finish_reason=st.none() | st.sampled_from(types.FinishReason),
    sampling=samplings,
    seed=uint64,
    width=uint32,
    probability=floats64,
    propensity=floats64,
    redacted=st.booleans(),
    valid=st.booleans(),
    option_id=texts,
    place=uint32,
)
tags = st.dictionaries(texts, texts, max_size=3).map(lambda found: tuple(sorted(found.items())))
interactions = st.builds(
    types.Interaction,
    interaction_id=names,
    channel=channels,
    purpose=st.sampled_from(types.Purpose),
    action=st.sampled_from(types.Action),
    messages=st.lists(st.builds(types.Message, texts, texts), max_size=3).map(tuple),
    prompt_group=texts,
    candidates=st.lists(candidates, max_size=2).map(tuple),
    completed_at=moments,
    session_id=texts,
    end_user=texts,
    rater=texts,
    passages=st.lists(st.builds(types.Passage, texts, texts, texts), max_size=2).map(tuple),
    prompt_tokens=st.lists(uint32, max_size=4).map(tuple),
    order_logprob=floats64,
    answers=st.lists(st.binary(max_size=16).map(bytes.hex), max_size=2).map(tuple),
    plugin_version=texts,
    base_digest=texts,
    tags=tags,
)
acts = st.one_of(
    st.builds(types.Thumbs, texts, st.booleans()),
    st.builds(types.Choice, texts, texts, st.booleans(), st.booleans()),
    st.builds(types.Ranking, st.lists(texts, max_size=4).map(tuple)),
    st.builds(types.Correction, texts, texts),
    st.builds(types.Rating, texts, floats64),
    st.builds(types.LabelAct, texts, texts),
    st.builds(types.Signal, texts, texts, floats64),
    st.builds(types.Comment, texts, texts),
)
feedbacks = st.builds(
    types.Feedback,
    feedback_id=names,
    interaction_id=names,
    channel=channels,
    act=acts,
    accepted_at=moments,
    rater=texts,
    session_id=texts,
    reasons=st.lists(texts, max_size=3).map(tuple),
    answer=st.binary(max_size=16).map(bytes.hex),
    tags=tags,
)
retractions = st.builds(
    codec.Retraction,
    feedback_id=names,
    interaction_id=names,
    channel=channels,
    accepted_at=moments,
    rater=texts,
    session_id=texts,
)
states = st.sampled_from(
    [name.removeprefix("RELEASE_STATE_").lower() for name in releases_pb2.ReleaseState.DESCRIPTOR.values_by_name]
)
changes = st.builds(
    codec.ReleaseChange,
    channel=channels,
    generation=uint64,
    live=uint32,
    canary=st.none() | uint32,
    pinned=st.booleans(),
    version=uint32,
    digest=texts,
    state=states,
    created_at=moments,
    changed_at=moments,
    decision_json=texts,
    actor=texts,
    reason=texts,
)
reasons = st.sampled_from(
    [name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name]
)
rejecteds = st.builds(
    codec.Rejected,
    reason=reasons,
    message=texts,
    topic=texts,
    partition=uint32,
    offset=uint64,
    key=st.binary(max_size=10),
    value=st.binary(max_size=30),
    rejected_at=moments,
)


def encode(noun, **options):
    options = {"producer": "test/1", **options}
    match noun:
        case types.Interaction():
            return codec.encode_interaction(noun, **options)
        case types.Feedback():
            return codec.encode_feedback(noun, **options)
        case codec.Retraction():
            return codec.encode_retraction(noun, **options)
        case codec.ReleaseChange():
            return codec.encode_release_changed(noun, **options)
        case codec.Rejected():
            return codec.encode_rejected(noun, **options)


@given(st.one_of(interactions, feedbacks, retractions, changes, rejecteds))
def test_what_is_encoded_is_decoded_again(noun):
    assert codec.decode(encode(noun)) == noun


@given(st.one_of(interactions, feedbacks, retractions, changes, rejecteds))
def test_the_same_record_has_the_same_bytes(noun):
    assert encode(noun, event_id="e") == encode(noun, event_id="e")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_undecodable_or_a_noun(value):
    with contextlib.suppress(Undecodable):
        codec.decode(value)


@given(st.one_of(interactions, feedbacks, retractions, changes, rejecteds), st.data())
def test_damaged_bytes_are_undecodable_or_a_noun(noun, data):
    value = bytearray(encode(noun))
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Undecodable):
        codec.decode(bytes(value[: data.draw(st.integers(0, len(value)))]))


@example(0.0)
@example(-0.0)
@given(floats32 | st.just(struct.unpack("<f", b"\xff\xff\x7f\x7f")[0]))
def test_any_temperature_that_a_record_can_hold_decodes_to_its_32_bits(temperature):
    envelope = events_pb2.Envelope()
    envelope.ParseFromString(encode(INTERACTION))
    envelope.interaction.candidates[0].sampling.temperature = temperature
    decoded = codec.decode(envelope.SerializeToString()).candidates[0].sampling.temperature
    assert struct.pack("<f", decoded) == struct.pack("<f", temperature)


FEEDBACK = types.Feedback(
    feedback_id="f1",
    interaction_id="i1",
    channel=CHANNEL,
    act=types.Thumbs("c1", True),
    accepted_at=NOW,
    rater="r1",
    session_id="s1",
    reasons=("too_long",),
)
INTERACTION = types.Interaction(
    interaction_id="i1",
    channel=CHANNEL,
    purpose=types.Purpose.SERVE,
    action=types.Action.COMPLETION,
    messages=(types.Message("user", "hello"),),
    prompt_group="hello",
    candidates=(
        types.Candidate(
            candidate_id="c1",
            release_version=1,
            release_digest="d",
            tokens=(2,),
            logprobs_raw=(-0.5,),
            logprobs_sampled=(-0.5,),
            text="hi",
            displayed_text="hi",
            finish_reason=types.FinishReason.EOS,
            sampling=types.Sampling(),
            seed=1,
            width=4,
        ),
    ),
    completed_at=NOW,
)


def damaged(noun, damage):
    envelope = events_pb2.Envelope()
    envelope.ParseFromString(encode(noun))
    damage(envelope)
    return envelope.SerializeToString()


@pytest.mark.parametrize(
    ("noun", "damage", "complaint"),
    [
        (FEEDBACK, lambda e: setattr(e, "schema", 2), "schema 2"),
        (FEEDBACK, lambda e: e.ClearField("schema"), "schema 0"),
        (FEEDBACK, lambda e: e.ClearField("feedback"), "no payload"),
        (FEEDBACK, lambda e: e.feedback.feedback.ClearField("act"), "no act"),
        (FEEDBACK, lambda e: e.feedback.feedback.ClearField("feedback_id"), "no feedback_id"),
        (FEEDBACK, lambda e: e.feedback.ClearField("interaction_id"), "no interaction_id"),
        (FEEDBACK, lambda e: e.feedback.ClearField("tenant"), "no tenant"),
        (FEEDBACK, lambda e: e.feedback.ClearField("accepted_at"), "no accepted_at"),
        (FEEDBACK, lambda e: setattr(e.feedback.accepted_at, "seconds", 2**60), "not a time"),
        (FEEDBACK, lambda e: setattr(e.feedback.accepted_at, "nanos", -5), "not a time"),
        (INTERACTION, lambda e: setattr(e.interaction, "action", 0), "action is 0"),
        (INTERACTION, lambda e: setattr(e.interaction, "purpose", 9), "purpose is 9"),
        (INTERACTION, lambda e: e.interaction.candidates[0].ClearField("candidate_id"), "no candidate_id"),
    ],
)
def test_a_record_that_lacks_something_says_what(noun, damage, complaint):
    with pytest.raises(Undecodable, match=complaint):
        codec.decode(damaged(noun, damage))


def test_fields_of_a_later_release_are_passed_over():
    later = damaged(FEEDBACK, lambda e: None) + b"\xfa\x3e\x03new"  # field 1007, three bytes
    assert codec.decode(later) == FEEDBACK


def test_an_unspecified_purpose_is_to_serve():
    assert codec.decode(damaged(INTERACTION, lambda e: setattr(e.interaction, "purpose", 0))) == INTERACTION


def test_records_have_ids_of_their_own_unless_one_is_given():
    envelopes = [events_pb2.Envelope.FromString(encode(FEEDBACK)) for _ in range(2)]
    assert envelopes[0].event_id != envelopes[1].event_id
    assert events_pb2.Envelope.FromString(encode(FEEDBACK, event_id="mine", traceparent="00-a")).event_id == "mine"


def test_the_envelope_says_who_wrote_it_and_when():
    envelope = events_pb2.Envelope.FromString(
        encode(FEEDBACK, producer="plaudit-serve/0.1.0", traceparent="00-ab-cd-01")
    )
    assert (envelope.producer, envelope.traceparent, envelope.schema) == ("plaudit-serve/0.1.0", "00-ab-cd-01", 1)
    assert envelope.occurred_at.ToDatetime(tzinfo=dt.UTC) == NOW
    assert envelope.feedback.body_digest == codec.body_digest(FEEDBACK)


def test_a_time_without_a_zone_is_not_written():
    with pytest.raises(ValueError, match="no time zone"):
        encode(dataclasses.replace(FEEDBACK, accepted_at=NOW.replace(tzinfo=None)))


@pytest.mark.parametrize(
    "change",
    [
        {"act": types.Thumbs("c1", False)},
        {"act": types.Thumbs("c2", True)},
        {"act": types.Comment("c1", "")},
        {"reasons": ()},
        {"rater": "r2"},
        {"session_id": "s2"},
    ],
)
def test_the_body_digest_sees_what_was_said_and_by_whom(change):
    assert codec.body_digest(dataclasses.replace(FEEDBACK, **change)) != codec.body_digest(FEEDBACK)


def test_the_body_digest_does_not_see_when_or_under_which_id():
    later = dataclasses.replace(FEEDBACK, accepted_at=NOW + dt.timedelta(days=1), feedback_id="f2", interaction_id="i2")
    assert codec.body_digest(later) == codec.body_digest(FEEDBACK)


def test_who_withdraws_is_known_as_who_gave():
    for rater, session in (("r", "s"), ("", "s"), ("", "")):
        given = dataclasses.replace(FEEDBACK, rater=rater, session_id=session)
        withdrawn = codec.Retraction(
            feedback_id="f1", interaction_id="i1", channel=CHANNEL, accepted_at=NOW, rater=rater, session_id=session
        )
        assert withdrawn.who == given.who


def test_undecodable_is_the_join_s_business():
    assert issubclass(Undecodable, RecordUnusable)
    assert issubclass(Undecodable, PlauditError)
