"""Bytes that earlier releases wrote: they decode for ever, and today's encoding of what they say is today's bytes.

golden/ holds what 0.1.0 wrote, golden/2/ what is written since interactions are of schema 2. Files are added, never
edited. `python tests/contract/test_golden.py` writes those that are missing.
"""

import dataclasses
import datetime as dt
from pathlib import Path
from unittest import mock

import pytest
from plaudit import types
from plaudit.errors import Undecodable
from plaudit.eventlog import codec, sealing

OLD = Path(__file__).parent / "golden"
FOLDER = OLD / "2"
NOW = dt.datetime(2027, 3, 1, 12, 0, 0, 123456, dt.UTC)
CHANNEL = types.Channel("instruction", "acme")
HEADER = {
    "producer": "plaudit-serve/0.1.0",
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "event_id": "0195521a-7c3b-7a10-8000-000000000001",
}


def interaction():
    return types.Interaction(
        interaction_id="0195521a-7c3b-7a10-8000-00000000000a",
        channel=CHANNEL,
        purpose=types.Purpose.EXPLORE,
        action=types.Action.COMPLETION,
        messages=(types.Message("system", "Be brief."), types.Message("user", "Wie groß ist 🌍?")),
        prompt_group="wie groß ist 🌍?",
        candidates=(
            types.Candidate(
                candidate_id="a",
                release_version=3,
                release_digest="ab" * 32,
                tokens=(17, 0, 2),
                logprobs_raw=(-0.5, -1.25, -0.0078125),
                logprobs_sampled=(-0.25, -1.0, 0.0),
                text="Groß. ",
                displayed_text="Groß.",
                finish_reason=types.FinishReason.STOP,
                sampling=types.Sampling(temperature=0.7, top_p=0.95, top_k=40, max_tokens=64, stop=("\n\n", "###")),
                seed=2**63 + 5,
                width=16,
                propensity=0.3,
                redacted=True,
                valid=False,
            ),
        ),
        completed_at=NOW,
        prompt_tokens=(1, 500, 31999),
        answers=("ab" * 16, "cd" * 16),
        session_id="session-1",
        end_user="p_1234",
        rater="p_5678",
        passages=(types.Passage("doc-1", "The Earth's radius is 6,371 km.", "https://example.org/earth"),),
        plugin_version="1.2.0",
        base_digest="cd" * 32,
    )


def choice_interaction():
    option = types.Candidate(
        candidate_id="o1",
        release_version=0,
        release_digest="",
        tokens=(9, 2),
        logprobs_raw=(-1.5, -0.5),
        logprobs_sampled=(),
        text="allow",
        displayed_text="allow",
        finish_reason=None,
        sampling=types.Sampling(),
        seed=0,
        width=4,
        probability=0.625,
        propensity=0.5,
        option_id="allow",
    )
    return types.Interaction(
        interaction_id="0195521a-7c3b-7a10-8000-00000000000b",
        channel=types.Channel("moderation", "default"),
        purpose=types.Purpose.SERVE,
        action=types.Action.CHOICE,
        messages=(types.Message("user", "post"),),
        prompt_group="post",
        candidates=(option,),
        completed_at=NOW,
        prompt_tokens=(1, 2),
        order_logprob=-0.6931471805599453,
    )


def decided_interaction():
    """A choice with what records have held since options can be decided and rules have versions."""
    return dataclasses.replace(choice_interaction(), policy_version="2026-11", decision="allow")


def feedback(act):
    return types.Feedback(
        feedback_id="0195521a-7c3b-7a10-8000-00000000000c",
        interaction_id="0195521a-7c3b-7a10-8000-00000000000a",
        channel=CHANNEL,
        act=act,
        accepted_at=NOW,
        rater="p_5678",
        session_id="session-1",
        reasons=("too_long", "wrong"),
        answer="ab" * 16,
    )


RETRACTION = codec.Retraction(
    feedback_id="0195521a-7c3b-7a10-8000-00000000000c",
    interaction_id="0195521a-7c3b-7a10-8000-00000000000a",
    channel=CHANNEL,
    accepted_at=NOW,
    rater="p_5678",
    session_id="session-1",
)
CHANGE = codec.ReleaseChange(
    channel=CHANNEL,
    generation=12,
    live=3,
    canary=0,
    pinned=True,
    version=3,
    digest="ef" * 32,
    state="live",
    created_at=NOW - dt.timedelta(hours=1),
    changed_at=NOW,
    decision_json='{"accepted":true}',
    actor="learner",
    reason="the gate accepted it",
)
REJECTED = codec.Rejected(
    reason="ID_CONFLICT",
    message="two bodies under one feedback id",
    topic="plaudit.feedback",
    partition=2,
    offset=2**40,
    key=b"0195521a-7c3b-7a10-8000-00000000000a",
    value=b"\x00\xff as they were",
    rejected_at=NOW,
)
AGREED = types.Consent(store=True, train=False)


class Keys:
    """One key, for everybody."""

    def to_seal(self, tenant, person):
        return "key-1", bytes(range(32))

    def to_open(self, key_ids):
        return dict.fromkeys(key_ids, bytes(range(32)))


SEALED = codec.SealedRecord(
    key_id="key-1", interaction_id="0195521a-7c3b-7a10-8000-00000000000a", channel=types.Channel("instruction", "acme")
)


def encode_sealed(noun, **header):
    """A thumb under the key, with a nonce that is always the same."""
    with mock.patch.object(sealing.os, "urandom", lambda count: b"n" * count):
        return sealing.seal(codec.encode_feedback(feedback(types.Thumbs("a", True)), **header), Keys())


TAGS = (("experiment.arm", "b"), ("page", "/größe?x=1"))

GOLDEN = {
    "interaction_completion": (interaction(), codec.encode_interaction),
    "interaction_choice": (choice_interaction(), codec.encode_interaction),
    "interaction_decided": (decided_interaction(), codec.encode_interaction),
    "feedback_thumbs": (feedback(types.Thumbs("a", True)), codec.encode_feedback),
    "feedback_choice": (feedback(types.Choice("a", "b", tie=True, tie_offered=True)), codec.encode_feedback),
    "feedback_ranking": (feedback(types.Ranking(("b", "a", "c"))), codec.encode_feedback),
    "feedback_correction": (feedback(types.Correction("a", "Zwölftausend Kilometer.")), codec.encode_feedback),
    "feedback_rating": (feedback(types.Rating("a", 4.5)), codec.encode_feedback),
    "feedback_label": (feedback(types.LabelAct("a", "allow")), codec.encode_feedback),
    "feedback_signal": (feedback(types.Signal("a", "watched", 0.1)), codec.encode_feedback),
    "feedback_comment": (feedback(types.Comment("", "Danke!")), codec.encode_feedback),
    "feedback_tagged": (dataclasses.replace(feedback(types.Thumbs("a", True)), tags=TAGS), codec.encode_feedback),
    "interaction_tagged": (dataclasses.replace(interaction(), tags=TAGS), codec.encode_interaction),
    "interaction_not_trained": (dataclasses.replace(interaction(), consent=AGREED), codec.encode_interaction),
    "sealed": (SEALED, encode_sealed),
    "retraction": (RETRACTION, codec.encode_retraction),
    "release_changed": (CHANGE, codec.encode_release_changed),
    "rejected": (REJECTED, codec.encode_rejected),
}


def as_0_1_0_said(name):
    """What the record says in today's types: schema 1 knew no marks, no order, and probabilities as propensities."""
    noun = GOLDEN[name][0]
    match noun:
        case types.Interaction(action=types.Action.CHOICE):
            options = tuple(dataclasses.replace(each, propensity=1.0) for each in noun.candidates)
            return dataclasses.replace(noun, candidates=options, order_logprob=0.0)
        case types.Interaction():
            return dataclasses.replace(noun, answers=())
        case types.Feedback():
            return dataclasses.replace(noun, answer="")
    return noun


# 0.1.0 wrote no such records.
NEWER = {"interaction_decided", "interaction_tagged", "feedback_tagged", "interaction_not_trained", "sealed"}


@pytest.mark.parametrize("name", sorted(GOLDEN.keys() - NEWER))
def test_bytes_of_0_1_0_still_say_what_they_said(name):
    assert codec.decode((OLD / f"{name}.bin").read_bytes()) == as_0_1_0_said(name)


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_of_today_say_what_they_said(name):
    assert codec.decode((FOLDER / f"{name}.bin").read_bytes()) == GOLDEN[name][0]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_same_words_are_still_the_same_bytes(name):
    noun, encode = GOLDEN[name]
    assert encode(noun, **HEADER) == (FOLDER / f"{name}.bin").read_bytes()


def test_a_sealed_record_opens_to_the_bytes_that_were_sealed():
    found = sealing.opened([(FOLDER / "sealed.bin").read_bytes()], Keys())
    assert found == [(FOLDER / "feedback_thumbs.bin").read_bytes()]


def test_every_golden_file_is_read():
    assert {path.stem for path in OLD.glob("*.bin")} == GOLDEN.keys() - NEWER
    assert {path.stem for path in FOLDER.glob("*.bin")} == GOLDEN.keys()


def test_every_message_of_a_payload_carries_its_schema():
    from plaudit.v1 import events_pb2, evidence_pb2

    for name in GOLDEN:
        envelope = events_pb2.Envelope.FromString((FOLDER / f"{name}.bin").read_bytes())
        assert getattr(envelope, envelope.WhichOneof("payload")).schema >= 1, name
    assert "schema" in evidence_pb2.EvidenceRow.DESCRIPTOR.fields_by_name


@pytest.mark.parametrize("name", GOLDEN)
def test_a_message_of_a_later_schema_is_undecodable(name):
    from plaudit.v1 import events_pb2

    envelope = events_pb2.Envelope.FromString((FOLDER / f"{name}.bin").read_bytes())
    payload = getattr(envelope, envelope.WhichOneof("payload"))
    payload.schema += 1
    with pytest.raises(Undecodable, match=f"has schema {payload.schema}; this release reads up to"):
        codec.decode(envelope.SerializeToString())


def test_every_payload_and_every_act_has_golden_bytes():
    from plaudit.v1 import events_pb2

    envelopes = [events_pb2.Envelope.FromString(path.read_bytes()) for path in FOLDER.glob("*.bin")]
    payloads = {envelope.WhichOneof("payload") for envelope in envelopes}
    acts = {envelope.feedback.feedback.WhichOneof("act") for envelope in envelopes}
    assert payloads == {field.name for field in events_pb2.Envelope.DESCRIPTOR.oneofs_by_name["payload"].fields}
    fields = events_pb2.FeedbackRecorded.DESCRIPTOR.fields_by_name["feedback"].message_type.oneofs_by_name["act"].fields
    assert acts - {None} == {field.name for field in fields}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for stem, (noun, encode) in GOLDEN.items():
        if not (FOLDER / f"{stem}.bin").exists():
            (FOLDER / f"{stem}.bin").write_bytes(encode(noun, **HEADER))
