"""Every error crosses a real channel with its status, its reason, its metadata and its class."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from plaudit import errors
from plaudit.errors import InternalError, InvalidText, MessageTooLarge, NotOffered, PlauditError
from plaudit.metrics import Metrics
from plaudit.serving.interceptors import CallInterceptor
from plaudit.v1 import assistant_pb2, assistant_pb2_grpc, errors_pb2, feedback_pb2_grpc
from plaudit.wire import error_classes, from_call
from prometheus_client import CollectorRegistry

LIMIT = 100_000


def every_class(cls=PlauditError):
    return [cls, *(below for child in cls.__subclasses__() for below in every_class(child))]


class Raising(assistant_pb2_grpc.AssistantServiceServicer):
    """Raises what the test puts into `error`, from a unary and from a streaming call."""

    error: Exception | None = None

    def Generate(self, request, context):
        if self.error:
            raise self.error
        return assistant_pb2.GenerateResponse(interaction_id=request.interaction_id)

    def StreamGenerate(self, request, context):
        yield assistant_pb2.StreamGenerateResponse(delta=assistant_pb2.TextDelta(text="first"))
        raise self.error


@pytest.fixture(scope="module")
def served():
    servicer, metrics = Raising(), Metrics(CollectorRegistry())
    server = grpc.server(
        ThreadPoolExecutor(4),
        interceptors=[CallInterceptor(metrics, LIMIT)],
        options=[("grpc.max_receive_message_length", 4 * LIMIT)],
    )
    assistant_pb2_grpc.add_AssistantServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, channel, metrics
    server.stop(0).wait()


@pytest.fixture
def stub(served):
    return assistant_pb2_grpc.AssistantServiceStub(served[1])


def failure(call):
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def info_of(error):
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return info, status


@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_every_error_keeps_code_reason_and_metadata(served, stub, cls):
    served[0].error = cls("what happened, with 7, and what to do", limit=7)
    error = failure(lambda: stub.Generate(assistant_pb2.GenerateRequest()))
    info, status = info_of(error)
    assert error.code() is getattr(grpc.StatusCode, cls.code)
    assert error.details() == "what happened, with 7, and what to do"
    assert (info.domain, info.reason, dict(info.metadata)) == ("plaudit", cls.reason, {"limit": "7"})
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details) is cls.retryable


@pytest.mark.parametrize(
    "cls", sorted(error_classes().values(), key=lambda cls: cls.__name__), ids=lambda c: c.__name__
)
def test_the_client_gets_the_class_that_was_raised(served, stub, cls):
    served[0].error = cls("words", key="value")
    error = from_call(failure(lambda: stub.Generate(assistant_pb2.GenerateRequest())))
    assert type(error) is cls
    assert (error.message, error.metadata) == ("words", {"key": "value"})


def test_every_reason_of_the_proto_has_one_class_and_every_class_a_reason():
    in_proto = {name.removeprefix("ERROR_REASON_") for name in list(errors_pb2.ErrorReason.keys())} - {"UNSPECIFIED"}
    leaves = [cls for cls in every_class() if not cls.__subclasses__()]
    assert sorted(cls.reason for cls in leaves) == sorted(in_proto)


def test_an_error_after_the_first_message_of_a_stream_keeps_its_reason(served, stub):
    served[0].error = MessageTooLarge()
    received = []

    def read():
        received.extend(stub.StreamGenerate(assistant_pb2.StreamGenerateRequest()))

    info, _ = info_of(failure(read))
    assert info.reason == "MESSAGE_TOO_LARGE"
    for message in stub.StreamGenerate(assistant_pb2.StreamGenerateRequest()):
        assert message.delta.text == "first"
        break


def test_a_bug_is_internal_and_names_the_request_without_its_words(served, stub):
    served[0].error = ZeroDivisionError("a secret")
    error = failure(lambda: stub.Generate(assistant_pb2.GenerateRequest(), metadata=[("x-request-id", "request-7")]))
    info, _ = info_of(error)
    assert (error.code(), info.reason, info.metadata["request_id"]) == (
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        "request-7",
    )
    assert "secret" not in error.details()
    assert isinstance(from_call(error), InternalError)
    assert ("x-request-id", "request-7") in [tuple(pair) for pair in error.trailing_metadata()]


def test_text_that_is_not_utf8_is_invalid_text(served):
    # Field 2 (domain) with the byte 0xFF, which no UTF-8 text has.
    raw = served[1].unary_unary("/plaudit.v1.AssistantService/Generate", lambda data: data, lambda data: data)
    info, _ = info_of(failure(lambda: raw(b"\x12\x01\xff")))
    assert info.reason == InvalidText.reason


def test_a_message_above_the_limit_is_refused_with_its_limit(served, stub):
    served[0].error = None
    big = assistant_pb2.GenerateRequest(interaction_id="x" * (LIMIT + 1))
    info, _ = info_of(failure(lambda: stub.Generate(big)))
    assert (info.reason, info.metadata["limit"]) == ("MESSAGE_TOO_LARGE", str(LIMIT))


def test_a_message_far_above_the_limit_is_refused_by_the_library_and_known_to_the_client(served, stub):
    served[0].error = None
    error = failure(lambda: stub.Generate(assistant_pb2.GenerateRequest(interaction_id="x" * (5 * LIMIT))))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(from_call(error), MessageTooLarge)


def test_a_long_message_and_metadata_fit_into_the_headers(served, stub):
    served[0].error = InvalidText("é" * 9000, field="f" * 9000)
    error = failure(lambda: stub.Generate(assistant_pb2.GenerateRequest()))
    info, status = info_of(error)
    assert info.reason == "INVALID_TEXT"
    # grpc-message takes three bytes for each byte that is not ASCII; the details are in base64. Between 8 and 16 KiB
    # the library refuses headers at random, so the sum must stay well below.
    assert 3 * len(error.details().encode()) + 4 * len(status.SerializeToString()) // 3 < 7000


def test_calls_are_counted_by_service_method_and_code(served, stub):
    served[0].error = None
    registry = served[2].registry
    labels = {"service": "AssistantService", "method": "Generate", "code": "OK"}
    before = registry.get_sample_value("plaudit_requests_total", labels) or 0
    stub.Generate(assistant_pb2.GenerateRequest())
    assert registry.get_sample_value("plaudit_requests_total", labels) == before + 1


def test_a_service_that_is_not_there_is_unimplemented(served):
    with pytest.raises(grpc.RpcError) as caught:
        feedback_pb2_grpc.FeedbackServiceStub(served[1]).SubmitFeedback(assistant_pb2.GenerateRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert isinstance(from_call(caught.value), NotOffered)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize(
    "cls", sorted(error_classes().values(), key=lambda cls: cls.__name__), ids=lambda c: c.__name__
)
def test_the_page_of_errors_has_every_class_with_its_code(cls):
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    again = "yes" if cls.retryable else "no"
    row = next(line for line in page.splitlines() if line.startswith(f"| `{cls.reason}` |"))
    assert row.startswith(f"| `{cls.reason}` | `{cls.code}` | `{cls.__name__}` | {again} |")
    assert row.endswith(f"| {' '.join(cls.__doc__.split())} |"), "what it means is what the class says"


def test_the_tree_of_errors_has_every_class_below_its_base():
    base, found = "", {}
    for line in str(errors.__doc__).splitlines():
        if branch := re.match(r"[├└]── (\w+)", line):
            base = branch.group(1)
        elif line.lstrip("│ ").startswith("├── "):
            found |= dict.fromkeys(re.findall(r"\w+", line), base)
    below = {cls.__name__: cls.mro()[cls.mro().index(PlauditError) - 1].__name__ for cls in error_classes().values()}
    assert found == below
