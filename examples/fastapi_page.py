"""A page that answers questions and has thumbs, with reasons that the domain declares.

Run it beside `plaudit up`: uvicorn --app-dir examples fastapi_page:app
"""

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Cookie, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from plaudit.client import AsyncPlaudit
from plaudit.errors import PlauditError
from pydantic import BaseModel

DOMAIN = "instruction"
PAGE = """<!doctype html>
<meta charset="utf-8"><title>Ask</title>
<form id="ask"><input id="question" size="60" value="How do I descale a kettle?"> <button>Ask</button></form>
<p id="answer"></p><p id="buttons" hidden></p>
<script>
const reasons = REASONS;
let handle = "";
const show = (id) => document.getElementById(id);
const post = async (path, body) => (await fetch(path, {
  method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)})).json();
show("ask").onsubmit = async (event) => {
  event.preventDefault();
  const reply = await post("/ask", {question: show("question").value});
  show("answer").textContent = reply.text ?? reply.error;
  handle = reply.handle ?? "";
  show("buttons").hidden = !handle;
};
const button = (text, body) => {
  const made = document.createElement("button");
  made.textContent = text;
  made.onclick = () => post("/thumbs", {handle, ...body});
  show("buttons").append(made, " ");
};
button("\\u{1F44D}", {up: true});
button("\\u{1F44E}", {up: false});
for (const reason of reasons) button("\\u{1F44E} " + reason, {up: false, reasons: [reason]});
</script>"""


class Question(BaseModel):
    """What the page asks."""

    question: str


class Thumb(BaseModel):
    """What a button sends."""

    handle: str
    up: bool
    reasons: list[str] = []


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncIterator[None]:
    """One client for the life of the page's server."""
    async with AsyncPlaudit(os.environ.get("PLAUDIT_TARGET", "127.0.0.1:50051")) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=connected)


@app.exception_handler(PlauditError)
async def refused(_: Request, error: PlauditError) -> JSONResponse:
    """What the service refuses, in its own words."""
    return JSONResponse({"error": error.message}, status_code=400)


@app.get("/")
async def page(person: Annotated[str, Cookie()] = "") -> HTMLResponse:
    """The page; whoever comes first gets a name of their own, which the service only keeps as a pseudonym."""
    (domain,) = [each for each in await app.state.client.domains() if each.name == DOMAIN]
    answer = HTMLResponse(PAGE.replace("REASONS", json.dumps(domain.reasons)))
    if not person:
        answer.set_cookie("person", secrets.token_urlsafe(16), httponly=True, samesite="lax")
    return answer


@app.post("/ask")
async def ask(asked: Question, person: Annotated[str, Cookie()] = "") -> dict[str, str]:
    """An answer and its handle."""
    reply = await app.state.client.generate(DOMAIN, asked.question, end_user=person, max_tokens=48)
    return {"text": reply.text, "handle": reply.handle}


@app.post("/thumbs")
async def thumbs(thumb: Thumb, person: Annotated[str, Cookie()] = "") -> Response:
    """A thumb, as this person's."""
    giver = app.state.client.feedback_from_handle(thumb.handle)
    send = giver.thumbs_up if thumb.up else giver.thumbs_down
    await send(rater=person, reasons=thumb.reasons, tags={"page": "example"})
    return Response(status_code=204)
