"""Numbers at the edge of their type: every numeric field of every request is answered, or refused with a reason."""

import math

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from plaudit.errors import InternalError, InvalidField, OutOfScale
from plaudit.v1 import (
    assistant_pb2,
    assistant_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    releases_pb2,
    releases_pb2_grpc,
)
from plaudit.wire import from_call

DENORMAL, SMALLEST_NORMAL, GREATEST = 1.401298464324817e-45, 1.1754943508222875e-38, 3.4028234663852886e38
FLOATS = (0.0, -0.0, DENORMAL, -DENORMAL, SMALLEST_NORMAL, 1e-6, 1.0, GREATEST, -GREATEST)
DOUBLES = (*FLOATS, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308)
STRANGE = (math.inf, -math.inf, math.nan)
VALUES = {
    FieldDescriptor.TYPE_FLOAT: FLOATS + STRANGE,
    FieldDescriptor.TYPE_DOUBLE: DOUBLES + STRANGE,
    FieldDescriptor.TYPE_UINT32: (0, 1, 2**31 - 1, 2**31, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 1, 2**63 - 1, 2**63, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: (0, 1, 99, 2**31 - 1, -(2**31)),
}


def numeric_fields(descriptor, above=()):
    """Paths of the numeric fields of a message, those of messages in it included."""
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE and not field.message_type.full_name.startswith("google."):
            yield from numeric_fields(field.message_type, (*above, field))
        elif field.type in VALUES:
            yield (*above, field)


def with_value(message, path, value):
    """`message` with one field set."""
    *above, field = path
    at = message
    for each in above:
        at = getattr(at, each.name)
        if each.is_repeated:
            at = at[0] if len(at) else at.add()
    if field.is_repeated:
        getattr(at, field.name).append(value)
    else:
        setattr(at, field.name, value)
    return message


def cases():
    for make in REQUESTS:
        for path in numeric_fields(make(None).DESCRIPTOR):
            yield pytest.param(make, path, id=f"{make.__name__}-{'.'.join(field.name for field in path)}")


def said():
    return [assistant_pb2.Message(role="user", content="Say hello.")]


def generate(handle):
    sampling = assistant_pb2.Sampling(max_tokens=2)
    return assistant_pb2.GenerateRequest(domain="echo", messages=said(), sampling=sampling)


def choose(handle):
    options = [assistant_pb2.Option(option_id=name, text=name) for name in ("a", "b")]
    return assistant_pb2.ChooseRequest(domain="echo-choice", messages=said(), options=options)


def submit(handle):
    return feedback_pb2.SubmitFeedbackRequest(feedback=feedback_pb2.Feedback(handle=handle or ""))


def get_release(handle):
    return releases_pb2.GetReleaseRequest(channel="echo/default")


def promote(handle):
    return releases_pb2.PromoteReleaseRequest(channel="echo/default", version=1)


def roll_back(handle):
    return releases_pb2.RollBackReleaseRequest(channel="echo/default")


def pin(handle):
    return releases_pb2.PinReleaseRequest(channel="echo/default", pinned=True)


REQUESTS = (generate, choose, submit, get_release, promote, roll_back, pin)
CALLS = {
    generate: lambda stubs: stubs[0].Generate,
    choose: lambda stubs: stubs[0].Choose,
    submit: lambda stubs: stubs[1].SubmitFeedback,
    get_release: lambda stubs: stubs[2].GetRelease,
    promote: lambda stubs: stubs[2].PromoteRelease,
    roll_back: lambda stubs: stubs[2].RollBackRelease,
    pin: lambda stubs: stubs[2].PinRelease,
}


@pytest.mark.parametrize(("make", "path"), list(cases()))
def test_a_number_is_answered_or_refused_with_a_reason(local, client, make, path):
    reply = client.generate("echo", "Hello", max_tokens=2)
    strange = []
    with grpc.insecure_channel(local.target) as channel:
        stubs = (
            assistant_pb2_grpc.AssistantServiceStub(channel),
            feedback_pb2_grpc.FeedbackServiceStub(channel),
            releases_pb2_grpc.ReleaseServiceStub(channel),
        )
        for value in VALUES[path[-1].type]:
            message = with_value(make(reply.handle), path, value)
            try:
                CALLS[make](stubs)(message, timeout=60.0)
            except grpc.RpcError as error:
                # The reason is ours: a status that the library made has no details.
                ours = b"plaudit" in dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
                if not ours or isinstance(from_call(error), InternalError):
                    strange.append((value, error))
    assert strange == []
    # The engine is alive.
    assert client.generate("echo", "Hello", max_tokens=2).handle


def test_a_refusal_states_the_limits(client):
    for field, value, limit in (
        ("temperature", 3.0, "0 to 2"),
        ("temperature", math.nan, "0 to 2"),
        ("top_p", 0.0, "above 0, at most 1"),
        ("release_versions", [2**31], f"0 to {2**31 - 1}"),
    ):
        with pytest.raises(InvalidField) as caught:
            client.generate("echo", "Hello", max_tokens=2, **{field: value})
        assert caught.value.metadata["limit"] == limit
    # As documented: below a thousandth the most likely token is taken, and it is kept whatever top_p is.
    greedy, tiny, narrow = (
        client.generate("echo", "Hello", max_tokens=6, seed=seed, **asked).text
        for seed, asked in ((1, {"temperature": 0.0}), (2, {"temperature": DENORMAL}), (3, {"top_p": DENORMAL}))
    )
    assert greedy == tiny == narrow
    with pytest.raises(OutOfScale, match="the scale is 0 to 1"):
        client.generate("echo", "Hello", max_tokens=2).rate(math.nan)
