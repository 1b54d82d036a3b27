"""Interactions, acts and requests that the conformance kit tries on a plugin. Frozen values leave; nothing enters."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from plaudit.domain import Declaration
from plaudit.types import (
    Act,
    Candidate,
    Channel,
    Choice,
    Comment,
    Correction,
    Feedback,
    FinishReason,
    Interaction,
    LabelAct,
    Message,
    Option,
    Outcome,
    Passage,
    Prompt,
    Purpose,
    Ranking,
    Rating,
    Request,
    Sampling,
    Signal,
    Thumbs,
)

OUTPUTS = (
    "Warm the pot first. Then add two spoons of tea.",
    "Tea is made of leaves and hot water.",
    "Ask a friend who likes tea to show you how.",
    "Pour the water, wait four minutes, and enjoy it!",
)
# Texts that repeat one of these are where a regular expression begins to backtrack.
PIECES = (
    "a",
    "A ",
    "a ",
    " ",
    "\n",
    "1",
    "1.",
    "a,",
    "a.",
    "(",
    "()",
    "<",
    "<a>",
    "[",
    "*",
    "-",
    '"',
    "\\",
    "é",
    "\t ",
)
_WHEN = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
_STRANGER = "a-stranger"


def interaction(
    declared: Declaration, request: Request, prompt: Prompt, texts: Sequence[str], shown: Sequence[Outcome]
) -> Interaction:
    """An interaction with the candidates "c0", "c1" and so on."""
    options = prompt.options or request.options
    return Interaction(
        interaction_id="00000000-0000-7000-8000-000000000001",
        channel=Channel(declared.name, "default"),
        purpose=Purpose.SERVE,
        action=declared.action,
        messages=request.messages,
        prompt_group=prompt.group,
        candidates=tuple(
            Candidate(
                candidate_id=f"c{number}",
                release_version=0,
                release_digest="0" * 64,
                tokens=(3, 4),
                logprobs_raw=(-1.0, -1.0),
                logprobs_sampled=(-1.0, -1.0),
                text=text,
                displayed_text=outcome.displayed,
                finish_reason=FinishReason.EOS,
                sampling=Sampling(),
                seed=number,
                width=4,
                valid=outcome.valid,
                option_id=options[number].option_id if options else "",
            )
            for number, (text, outcome) in enumerate(zip(texts, shown, strict=True))
        ),
        completed_at=_WHEN,
        prompt_tokens=(1, 2),
        passages=request.passages,
        plugin_version=declared.version,
    )


def feedback(about: Interaction, act: Act) -> Feedback:
    """`act` as the log holds it."""
    return Feedback(
        feedback_id="00000000-0000-7000-8000-000000000002",
        interaction_id=about.interaction_id,
        channel=about.channel,
        act=act,
        accepted_at=_WHEN,
        rater="rater",
    )


def acts(about: Interaction) -> list[Act]:
    """One act of every kind there is."""
    ids = [candidate.candidate_id for candidate in about.candidates]
    return [
        Thumbs(ids[0], up=True),
        Choice(ids[0], ids[1]),
        Ranking(tuple(ids)),
        Correction(ids[0], "Warm the pot. Then add two spoons of tea."),
        Rating(ids[0], 1.0),
        LabelAct(ids[0], "yes"),
        Signal(ids[0], "like", 1.0),
        Comment(ids[0], "I like it."),
    ]


def acts_on_strangers() -> list[Act]:
    """Acts about a candidate that no interaction has."""
    return [
        Thumbs(_STRANGER, up=True),
        Choice(_STRANGER, "another-stranger"),
        Ranking((_STRANGER, "another-stranger")),
        Correction(_STRANGER, "A better text."),
        Rating(_STRANGER, 1.0),
        LabelAct(_STRANGER, "yes"),
        Signal(_STRANGER, "like", 1.0),
    ]


def strange_requests(options: tuple[Option, ...]) -> list[Request]:
    """Requests that arrive sooner or later: empty, very long, in other scripts, in other roles."""

    def said(*contents: str, role: str = "user", passages: tuple[Passage, ...] = ()) -> Request:
        messages = tuple(Message(role, content) for content in contents)
        return Request(messages=messages, passages=passages, options=options)

    return [
        Request(messages=(), options=options),
        said(""),
        said(" \n\t "),
        said("tea " * 16_000),
        said("お茶の入れ方を教えてください。"),
        said("كيف أصنع الشاي؟"),
        said("👩🏽‍🍳 e\u0301 \u202e \ufeff"),
        said("tea?", role="system"),
        said("tea?", role="assistant"),
        said(*["tea?"] * 64),
        said("tea?", passages=(Passage("p", "", ""), Passage("p", "Tea is a drink.", "book"))),
        Request(messages=(Message("user", "tea?"),)),
    ]
