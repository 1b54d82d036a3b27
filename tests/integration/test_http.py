"""The HTTP door, asked by OpenAI's own client and by a plain one, over the real service."""

import asyncio
import json
import socket

import httpx
import openai
import pytest
import structlog
from plaudit.errors import Misconfigured
from plaudit.eventlog import Topic
from plaudit.plugins import load_plugins
from plaudit.serving.http import shapes
from plaudit.serving.http.app import HANDLE_HEADER
from plaudit.testing.serving import local_server, serve_settings
from plaudit.types import Purpose, Thumbs

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def door(tmp_path, tiny_engine):
    settings = serve_settings(tmp_path, http_port=0, max_message_bytes=65_536)
    with local_server(tmp_path, tiny_engine, load_plugins(("echo", "echo-choice")), settings=settings) as server:
        yield server


@pytest.fixture
def url(door):
    return f"http://127.0.0.1:{door.server.http_port}/v1"


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def plain(url):
    with httpx.Client(base_url=url, trust_env=False) as plain:
        yield plain


def test_an_openai_client_gets_a_recorded_answer_with_its_handle(door, client):
    raw = client.chat.completions.with_raw_response.create(
        model="echo", messages=HELLO, n=2, seed=7, max_tokens=6, temperature=0.5, user="u1"
    )
    reply = raw.parse()
    (interaction,) = door.records(Topic.INTERACTIONS)
    assert [c.message.content for c in reply.choices] == [c.displayed_text for c in interaction.candidates]
    assert [c.index for c in reply.choices] == [0, 1]
    assert {c.finish_reason for c in reply.choices} <= {"stop", "length"}
    assert reply.model == "echo@0"
    assert reply.id == interaction.interaction_id == reply.plaudit["interaction_id"]
    assert reply.plaudit["candidate_ids"] == [c.candidate_id for c in interaction.candidates]
    assert raw.headers[HANDLE_HEADER] == reply.plaudit["handle"]
    assert interaction.end_user not in ("", "u1")
    made = sum(len(c.tokens) for c in interaction.candidates)
    assert reply.usage.prompt_tokens == len(interaction.prompt_tokens)
    assert reply.usage.completion_tokens == made
    assert reply.usage.total_tokens == made + reply.usage.prompt_tokens


def test_a_stream_is_the_same_text_and_ends_with_the_handle_and_the_usage(door, client):
    wanted = {"model": "echo", "messages": HELLO, "seed": 3, "max_tokens": 12}
    whole = client.chat.completions.create(**wanted)
    chunks = list(client.chat.completions.create(**wanted, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    streamed = door.records(Topic.INTERACTIONS)[-1]
    assert text == streamed.candidates[0].text
    assert streamed.candidates[0].tokens == door.records(Topic.INTERACTIONS)[0].candidates[0].tokens
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].plaudit["handle"]
    *_, last, usage = chunks
    assert last.choices[0].finish_reason in ("stop", "length")
    assert last.plaudit["handle"]
    assert usage.choices == []
    assert usage.usage.total_tokens == whole.usage.total_tokens
    assert {c.id for c in chunks} == {streamed.interaction_id}


def test_several_completions_stream_side_by_side(client):
    chunks = list(client.chat.completions.create(model="echo", messages=HELLO, n=2, max_tokens=6, stream=True))
    ended = [c.index for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(ended) == [0, 1]


def test_the_asynchronous_client_too(url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            replies = await asyncio.gather(
                *(client.chat.completions.create(model="echo", messages=HELLO, max_tokens=4) for _ in range(8))
            )
            stream = await client.chat.completions.create(model="echo", messages=HELLO, max_tokens=4, stream=True)
            return replies, [chunk async for chunk in stream]

    replies, chunks = asyncio.run(ask())
    assert len({reply.id for reply in replies}) == 8
    assert chunks[-1].plaudit["handle"]


def test_feedback_is_the_protos_json(door, client, plain):
    reply = client.chat.completions.create(model="echo", messages=HELLO, n=2, max_tokens=4)
    handle, (first, second) = reply.plaudit["handle"], reply.plaudit["candidate_ids"]
    given = plain.post(
        "/feedback", json={"handle": handle, "rater": "ada", "thumbs": {"candidate_id": "#1", "up": True}}
    )
    assert given.status_code == 200, given.text
    chosen = {"chosenId": first, "other_id": second}
    assert plain.post("/feedback", json={"handle": handle, "choice": chosen}).status_code == 200
    acts = door.records(Topic.FEEDBACK)
    assert acts[0].act == Thumbs(second, up=True)
    assert acts[0].feedback_id == given.json()["feedback_id"]
    assert acts[0].rater not in ("", "ada")
    taken_back = {"handle": handle, "feedback_id": given.json()["feedback_id"], "rater": "ada"}
    assert plain.post("/feedback/retract", json=taken_back).status_code == 200


def test_what_grpc_gives_on_request_is_here_by_openais_names(door, client):
    wanted = {"model": "echo", "messages": HELLO, "seed": 3, "max_tokens": 6, "logprobs": True}
    metadata = {"page": "checkout"}
    whole = client.chat.completions.create(**wanted, metadata=metadata, extra_body={"plaudit": {"token_ids": True}})
    recorded = door.records(Topic.INTERACTIONS)[-1]
    assert dict(recorded.tags) == metadata
    assert whole.plaudit["token_ids"] == [list(recorded.candidates[0].tokens)]
    told = whole.choices[0].logprobs.content
    assert "".join(token.token for token in told) == recorded.candidates[0].text
    assert [token.logprob for token in told] == pytest.approx(recorded.candidates[0].logprobs_raw)
    *_, last = client.chat.completions.create(**wanted, stream=True)
    assert last.choices[0].logprobs.content == told
    plain = client.chat.completions.create(model="echo", messages=HELLO, max_tokens=2)
    assert plain.choices[0].logprobs is None
    assert "token_ids" not in plain.plaudit


def test_a_page_draws_its_buttons_from_the_domains(plain):
    domains = {each["name"]: each for each in plain.get("/domains").json()["domains"]}
    assert domains["echo"]["action"] == "ACTION_COMPLETION"
    assert {"thumbs", "rating"} <= set(domains["echo"]["kinds"])
    assert set(domains["echo"]["rating_scale"]) == {"low", "high"}
    assert domains["echo-choice"]["reasons"] == []


def test_models_are_domains_of_text_and_their_releases(client):
    assert [model.id for model in client.models.list()] == ["echo"]
    client.chat.completions.create(model="echo", messages=HELLO, max_tokens=2)
    assert [model.id for model in client.models.list()] == ["echo", "echo@0"]
    assert client.models.retrieve("echo@0").owned_by == "plaudit"
    named = client.chat.completions.create(model="echo@0", messages=HELLO, max_tokens=2)
    assert named.model == "echo@0"
    for nobody in ("echo@7", "nobody", "echo@x"):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
            client.chat.completions.create(model=nobody, messages=HELLO)


def test_what_is_ours_travels_in_one_object_and_in_headers(door, client):
    mine = {"purpose": "explore", "rater": "bo", "passages": [{"passage_id": "p", "text": "Tea."}]}
    client.chat.completions.create(
        model="echo",
        messages=[{"role": "developer", "content": "Be kind."}, *HELLO],
        max_completion_tokens=3,
        extra_body={"plaudit": mine, "top_k": 5},
        extra_headers={"x-plaudit-tenant": "acme", "x-plaudit-session": "s1", "x-request-id": "r1"},
    )
    (interaction,) = door.records(Topic.INTERACTIONS)
    assert interaction.channel.tenant == "acme"
    assert interaction.session_id == "s1"
    assert interaction.purpose is Purpose.EXPLORE
    assert interaction.messages[0].role == "system"
    assert interaction.passages[0].text == "Tea."
    assert interaction.candidates[0].sampling.top_k == 5
    assert interaction.candidates[0].sampling.max_tokens == 3
    assert interaction.rater


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
REFUSED = {
    "tools": ({"tools": [TOOL]}, "tools", "INVALID_FIELD"),
    "logprobs": ({"logprobs": "yes"}, "logprobs", "INVALID_FIELD"),
    "other tokens' logprobs": ({"logprobs": True, "top_logprobs": 5}, "top_logprobs", "INVALID_FIELD"),
    "metadata": ({"metadata": {"page": 3}}, "metadata", "INVALID_FIELD"),
    "too much metadata": ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "INVALID_FIELD"),
    "json mode": ({"response_format": {"type": "json_object"}}, "response_format", "INVALID_FIELD"),
    "penalty": ({"presence_penalty": 1.0}, "presence_penalty", "INVALID_FIELD"),
    "too hot": ({"temperature": 9.0}, "temperature", "INVALID_FIELD"),
    "no number": ({"temperature": "hot"}, "temperature", "INVALID_FIELD"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content",
        "INVALID_FIELD",
    ),
    "tool role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "INVALID_FIELD"),
    "no answer": ({"n": 0}, "n", "INVALID_FIELD"),
    "a tag too long": ({"metadata": {"page": "x" * 600}}, "metadata[page]", "INVALID_FIELD"),
    "no message": ({"messages": []}, "messages", "EMPTY_PROMPT"),
    "a domain of choices": ({"model": "echo-choice"}, "model", "WRONG_ACTION"),
    "unknown of ours": ({"plaudit": {"colour": "red"}}, "plaudit", "INVALID_FIELD"),
    "too large": ({"messages": [{"role": "user", "content": "a" * 70_000}]}, None, "MESSAGE_TOO_LARGE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_in_openais_shape_with_our_reason(door, plain, case):
    changes, param, code = REFUSED[case]
    for stream in (False, True):
        body = {"model": "echo", "messages": HELLO, "stream": stream, **changes}
        answer = plain.post("/chat/completions", json=body)
        assert 400 <= answer.status_code < 500, answer.text
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == (param, code)
        assert error["message"]
        assert "sampling." not in error["message"], "of another door"
    assert door.records(Topic.INTERACTIONS) == []


def test_defaults_that_clients_send_unasked_are_taken(client):
    client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]}],
        max_tokens=2,
        logprobs=False,
        presence_penalty=0,
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        metadata={"a": "b"},
    )


def test_bodies_that_are_no_requests_get_an_error_and_no_text_back(plain):
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 40_000, b'"secret"'):
        answer = plain.post("/chat/completions", content=body)
        assert answer.status_code == 400, body
        assert "secret" not in answer.text
    for body in (b'{"a": NaN}', b'{"seed": ' + b"9" * 5000 + b"}", '{"model": "echo"}'.encode("utf-16")):
        answer = plain.post("/chat/completions", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_FIELD"), body[:20]
    for path in ("/nothing", "/models/"):
        assert plain.get(path).json()["error"]["code"] == "NOT_OFFERED"
    assert plain.get("/chat/completions").status_code == 405


WRONG_FEEDBACK = {
    "no object": ([], "", "is not a JSON object"),
    "no handle": ({"thumbs": {"up": True}}, "handle", "came with the answer"),
    "a handle of another type": ({"handle": 7}, "handle", "must be a text"),
    "nothing said": ({}, "act", "send one of thumbs, choice"),
    "a misspelt field": ({"ratter": "ada", "thumbs": {"up": True}}, "ratter", "did you mean 'rater'?"),
    "an unknown field inside": ({"thumbs": {"candidate": "secret", "up": True}}, "thumbs.candidate", "'candidate_id'"),
    "two kinds": ({"thumbs": {"up": True}, "comment": {"text": "secret"}}, "comment", "each by itself"),
    "a bare thumb": ({"thumbs": True}, "thumbs", '{"up": ...}'),
    # Taken as the message's default, this would be a thumb down that nobody gave.
    "a thumb without direction": ({"thumbs": {}}, "thumbs.up", "true or false"),
    "a thumb of null": ({"thumbs": {"up": None}}, "thumbs.up", "true or false"),
    "a thumb of another type": ({"thumbs": {"up": "secret"}}, "thumbs.up", "true or false"),
    "a rating without value": ({"rating": {}}, "rating.value", "a number"),
    "a rating in words": ({"rating": {"value": "secret"}}, "rating.value", "a number"),
    "a signal without value": ({"signal": {"name": "liked"}}, "signal.value", "a number"),
    "a list of another type": ({"choice": {"chosen_id": "#0"}, "reasons": 3}, "", "protos/plaudit/v1"),
    "no candidate of two": ({"thumbs": {"up": True}}, "candidate_id", "#0 to #1"),
}


@pytest.mark.parametrize("case", WRONG_FEEDBACK)
def test_feedback_that_cannot_be_taken_names_its_field_and_what_to_write(door, client, plain, case):
    body, param, words = WRONG_FEEDBACK[case]
    if isinstance(body, dict) and param != "handle":
        reply = client.chat.completions.create(model="echo", messages=HELLO, n=2, max_tokens=2)
        body = {"handle": reply.plaudit["handle"], **body}
    answer = plain.post("/feedback", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"] or "") == (400, param), error
    assert words in error["message"]
    assert "secret" not in answer.text
    assert door.records(Topic.FEEDBACK) == []


def test_numbers_of_feedback_may_be_texts_as_in_the_protos_json(door, client, plain):
    reply = client.chat.completions.create(model="echo", messages=HELLO, max_tokens=2)
    given = plain.post("/feedback", json={"handle": reply.plaudit["handle"], "rating": {"value": "0.5"}})
    assert given.status_code == 200, given.text
    assert door.records(Topic.FEEDBACK)[0].act.value == 0.5


WRONG = {
    '"messages": [{"role": [], "content": "x"}]': "messages[0].role",
    '"messages": [{"role": {}, "content": "x"}]': "messages[0].role",
    '"plaudit": {"purpose": []}': "plaudit.purpose",
    '"temperature": 1' + "0" * 400: "temperature",
    '"top_p": 1e400': "top_p",
    '"top_k": 1e400': "top_k",
    '"top_k": -1': "top_k",
    '"top_k": 99999999999': "top_k",
    '"top_k": 1.5': "top_k",
    '"stream": "false"': "stream",
    f'"{"k" * 9000}": 1': "k" * 64,
}
HALF = {
    "/chat/completions": (
        '{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        '{"model": "\\uDFFF", "messages": [{"role": "user", "content": "x"}]}',
        '{"model": "echo", "messages": [{"role": "user", "content": "x", "\\ud800": 1}]}',
    ),
    "/feedback": ('{"handle": "\\ud800"}', '{"\\ud83d": "x"}'),
    "/feedback/retract": ('{"\\ud83d": "x"}',),
}


def test_values_of_a_wrong_type_or_size_are_refused_by_name(door, plain):
    for wrong, param in WRONG.items():
        good = "" if '"messages"' in wrong else '"messages": [{"role": "user", "content": "x"}], '
        answer = plain.post("/chat/completions", content=f'{{"model": "echo", {good}{wrong}}}')
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "INVALID_FIELD", param), wrong[:60]
    rating = '{"handle": "x", "rating": {"value": 1' + "0" * 400 + "}}"
    assert plain.post("/feedback", content=rating).json()["error"]["code"] == "INVALID_FIELD"
    assert door.records(Topic.INTERACTIONS) == []


def test_half_a_character_is_refused_and_a_whole_one_in_two_halves_is_taken(plain):
    for path, bodies in HALF.items():
        for body in bodies:
            answer = plain.post(path, content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_TEXT"), body
    whole = (
        '{"model": "echo", "messages": [{"role": "user", "content": "\\ud83d\\ude00"}], "max_tokens": 2, "top_k": 5.0}'
    )
    assert plain.post("/chat/completions", content=whole).status_code == 200


def test_headers_that_grpc_cannot_carry_are_left_out(plain):
    body = {"model": "echo", "messages": HELLO, "max_tokens": 2}
    for name in ("x-request-id", "traceparent", "authorization"):
        answer = plain.post("/chat/completions", json=body, headers=[(name.encode(), "a\xe9\tb".encode("latin-1"))])
        assert answer.status_code == 200, name


@pytest.mark.parametrize(("breaks_at", "stream"), [("completion", False), ("_usage", True)])
def test_what_breaks_has_openais_shape_and_one_line_in_the_log(plain, monkeypatch, breaks_at, stream):
    def breaks(*_):
        raise KeyError("what somebody wrote")

    monkeypatch.setattr(shapes, breaks_at, breaks)
    body = {"model": "echo", "messages": HELLO, "max_tokens": 2, "stream": stream}
    with structlog.testing.capture_logs() as lines:
        answer = plain.post("/chat/completions", json={**body, "stream_options": {"include_usage": True}})
    last = answer.text.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "INTERNAL"
    assert answer.status_code == (200 if stream else 500)
    assert "what somebody wrote" not in answer.text
    broke = {"event": "request broke", "path": "/v1/chat/completions", "error": "KeyError"}
    assert len([line for line in lines if broke.items() <= line.items()]) == 1


def test_the_http_librarys_own_lines_are_lines_of_the_log(door, capfd):
    with (
        structlog.testing.capture_logs() as lines,
        socket.create_connection(("127.0.0.1", door.server.http_port)) as raw,
    ):
        raw.sendall(b"what somebody wrote\r\n\r\n")
        assert b"400" in raw.recv(1000)
    said = {"event": "http library", "what": "Invalid HTTP request received."}
    assert any(said.items() <= line.items() for line in lines)
    assert "Invalid HTTP" not in capfd.readouterr().err


def test_a_caller_who_leaves_a_stream_leaves_a_record_of_what_went_out(door, url):
    with httpx.Client(trust_env=False) as plain:
        # This answer uses up all its tokens; at a high temperature some end at once.
        body = {"model": "echo", "messages": HELLO, "max_tokens": 400, "stream": True, "seed": 1}
        with plain.stream("POST", f"{url}/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            said = [json.loads(next(line for line in lines if line)[6:]) for _ in range(3)]
    assert said[0]["plaudit"]["handle"]
    for _ in range(600):
        records = door.records(Topic.INTERACTIONS)
        if records:
            break
    assert records[0].interaction_id == said[0]["id"]
    assert door.engine.load() == (0, 0)


def test_the_door_is_as_alive_as_the_service(door, url):
    with httpx.Client(trust_env=False) as plain:
        assert plain.get(url.replace("/v1", "/healthz")).json() == {"serving": True}


def test_a_taken_port_names_itself(door, tmp_path, tiny_engine):
    settings = serve_settings(tmp_path / "second", http_port=door.server.http_port)
    with (
        pytest.raises(Misconfigured, match=rf"{door.server.http_port} for HTTP"),
        local_server(tmp_path / "second", tiny_engine, load_plugins(("echo",)), settings=settings),
    ):
        pass
