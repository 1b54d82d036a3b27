"""Judgements from a file become interactions and feedback in the log, where the join finds them as any other.

Enters: lines, one at a time. Leaves: for each an interaction of purpose IMPORTED and an act on it, under ids that
follow from what the line says, so that a file that is imported again counts once; and the reason for each line that
cannot be used. What people wrote is redacted as at the door, limited as at the door, and never repeated in a reason.

An imported act counts as any other: by its rater's split and cap, on its prompt group's split. Lines that name nobody
are of one rater, the file: it has one split and one cap.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from plaudit import __version__
from plaudit.domain import DomainPlugin
from plaudit.errors import EmptyPrompt, InvalidField, PlauditError, PromptTooLong, UndeclaredKind, WrongAction
from plaudit.eventlog import EventLog, Topic
from plaudit.eventlog.codec import encode_feedback, encode_interaction
from plaudit.exchange.formats import Format, Judged, format_of, parse, read
from plaudit.plugins.returned import MAX_COMPLETIONS
from plaudit.privacy.redaction import Redaction
from plaudit.serving.handle import answer_mark, pseudonym
from plaudit.serving.validate import MAX_MESSAGES, MAX_PERSON_BYTES, MAX_TEXT_BYTES, short_text
from plaudit.types import (
    Act,
    Action,
    Candidate,
    Channel,
    Choice,
    Consent,
    Feedback,
    FeedbackKind,
    FinishReason,
    Interaction,
    Message,
    Purpose,
    Ranking,
    Request,
    Sampling,
    Thumbs,
)

PRODUCER = f"plaudit-import/{__version__}"
MAX_LINE_BYTES = 4 * 1024 * 1024  # as the largest message of a call
BATCH = 200  # records that are made durable at once
ALL = Consent()
_KINDS = {Format.DPO: FeedbackKind.CHOICE, Format.KTO: FeedbackKind.THUMBS, Format.RANKED: FeedbackKind.RANKING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A line that was not imported."""

    line: int
    reason: str
    message: str


@dataclass(slots=True, kw_only=True)
class Imported:
    """What became of a file's lines. `refused` counts by reason; `first` are some of these lines."""

    lines: int = 0
    taken: int = 0
    raters: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: list[Refused] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """How lines become records. `encode`: token ids of a prompt. `rater_column`: empty if lines name nobody.

    `rater`: the name of whoever judged lines that name nobody. `redaction`: what of personal data is replaced.
    `consent`: what the people agreed to whose texts these are. `length`: tokens of a completion; with its prompt it has
    at most `most_tokens`.
    """

    channel: Channel
    plugin: DomainPlugin
    encode: Callable[[Sequence[Message]], tuple[int, ...]]
    pseudonym_key: bytes
    redaction: Redaction
    base_digest: str
    rater: str
    rater_column: str = ""
    consent: Consent = ALL
    length: Callable[[str], int] = len
    most_tokens: int = 2**31

    def run(self, lines: BinaryIO, log: EventLog, wanted: Format | None = None, *, most_named: int = 20) -> Imported:
        """Imports every line that can be used; each batch is durable before the next is read.

        Raises UndeclaredKind or WrongAction for a domain that takes no such feedback, LogUnavailable.
        """
        if self.plugin.declaration.action is not Action.COMPLETION:
            raise WrongAction(f"{self.channel.domain} is a domain of choices; preferences are of completions")
        if wanted is not None:
            self._check_kind(wanted)
        found, raters = Imported(), set[str]()
        batch: list[tuple[Interaction, Feedback]] = []
        now = dt.datetime.now(dt.UTC)
        for number, line in _bounded(lines):
            found.lines += 1
            try:
                if line is None:
                    raise InvalidField(f"the line is longer than {MAX_LINE_BYTES} bytes", field="line")
                batch.append(self._records(parse(line), wanted, now))
            except PlauditError as error:
                found.refused[error.reason] += 1
                if len(found.first) < most_named:
                    found.first.append(Refused(line=number, reason=error.reason, message=error.message))
                continue
            raters.add(batch[-1][1].who)
            if len(batch) >= BATCH:
                found.taken += _append(log, batch)
                batch = []
        found.taken += _append(log, batch)
        found.raters = len(raters)
        return found

    def _check_kind(self, wanted: Format) -> None:
        kind, declared = _KINDS[wanted], self.plugin.declaration.kinds
        if kind not in declared:
            raise UndeclaredKind(
                f"{self.channel.domain} takes no feedback of kind {kind}, which {wanted} lines are; it takes "
                f"{', '.join(sorted(declared))}",
                domain=self.channel.domain,
                kind=kind,
            )

    def _records(self, line: Any, wanted: Format | None, now: dt.datetime) -> tuple[Interaction, Feedback]:
        kind = wanted or format_of(line)
        self._check_kind(kind)
        judged = read(line, kind)
        _check(judged)
        person = self.rater
        if self.rater_column and line.get(self.rater_column) not in (None, ""):
            named = line[self.rater_column]
            if not isinstance(named, str | int):
                raise InvalidField(f"{self.rater_column} must be a text or a number", field=self.rater_column)
            person = short_text(self.rater_column, str(named), MAX_PERSON_BYTES)
        identity = self._identity(judged)
        interaction = self._interaction(judged, identity, now)
        rater = pseudonym(self.pseudonym_key, self.channel.tenant, person)
        act = _act(judged, [each.candidate_id for each in interaction.candidates])
        feedback = Feedback(
            feedback_id=str(uuid.uuid5(identity, f"{rater}\0{json.dumps(_said(judged))}")),
            interaction_id=interaction.interaction_id,
            channel=self.channel,
            act=act,
            accepted_at=now,
            rater=rater,
            answer=interaction.answers[0],
        )
        return interaction, feedback

    def _identity(self, judged: Judged) -> uuid.UUID:
        """Follows from prompt and completions, in any order; under a key, so that nobody guesses texts by it."""
        said = [str(self.channel), [[m.role, m.content] for m in judged.prompt], sorted(judged.completions)]
        digest = hmac.new(self.pseudonym_key, json.dumps(said).encode(), hashlib.sha256).digest()
        return uuid.UUID(bytes=digest[:16], version=5)

    def _interaction(self, judged: Judged, identity: uuid.UUID, now: dt.datetime) -> Interaction:
        messages = tuple(Message(each.role, self._clean(each.content)) for each in judged.prompt)
        request = Request(messages=messages)
        prompt = self.plugin.render(request)
        declaration = self.plugin.declaration
        tokens = self.encode(prompt.messages)
        longest = len(tokens) + max(map(self.length, judged.completions))
        if longest > self.most_tokens:
            raise PromptTooLong(f"prompt and completion have {longest} tokens; the context has {self.most_tokens}")
        # In order of the text: which of them was preferred is for the act to say.
        candidates = []
        for index, text in enumerate(sorted(judged.completions)):
            shown = self._clean(text)
            outcome = self.plugin.parse(prompt, shown)
            candidates.append(
                _candidate(str(uuid.uuid5(identity, str(index))), shown, outcome.displayed, outcome.valid)
            )
        return Interaction(
            interaction_id=str(identity),
            channel=self.channel,
            purpose=Purpose.IMPORTED,
            action=Action.COMPLETION,
            messages=messages,
            prompt_group=prompt.group,
            candidates=tuple(candidates),
            prompt_tokens=tokens,
            completed_at=now,
            answers=(answer_mark(candidates),),
            plugin_version=declaration.version,
            base_digest=self.base_digest,
            policy_version=declaration.policy_version,
            consent=self.consent,
        )

    def _clean(self, text: str) -> str:
        return self.redaction(text)[0] if self.redaction else text


def _candidate(candidate_id: str, text: str, displayed: str, valid: bool) -> Candidate:
    """A completion that no release of ours made: without tokens, log-probs and sampling."""
    return Candidate(
        candidate_id=candidate_id,
        release_version=0,
        release_digest="",
        tokens=(),
        logprobs_raw=(),
        logprobs_sampled=(),
        text=text,
        displayed_text=displayed,
        finish_reason=FinishReason.EOS,
        sampling=Sampling(),
        seed=0,
        width=0,
        redacted=True,  # there are no tokens of it to learn a policy from: it is tokenised when it is read
        valid=valid,
    )


def _act(judged: Judged, ids: Sequence[str]) -> Act:
    """What was said, of candidates in order of their texts."""
    of = dict(zip(sorted(judged.completions), ids, strict=True))
    order = tuple(of[text] for text in judged.completions)
    if judged.good is not None:
        return Thumbs(order[0], judged.good)
    return Choice(order[0], order[1]) if len(order) == 2 else Ranking(order)


def _said(judged: Judged) -> list[Any]:
    return [judged.good, *judged.completions]


def _check(judged: Judged) -> None:
    if len(judged.prompt) > MAX_MESSAGES:
        raise InvalidField(f"prompt has {len(judged.prompt)} messages; {MAX_MESSAGES} is the most", field="prompt")
    if len(judged.completions) > MAX_COMPLETIONS:
        raise InvalidField(
            f"completions are {len(judged.completions)}; {MAX_COMPLETIONS} is the most", field="completions"
        )
    if not any(each.content.strip() for each in judged.prompt):
        raise EmptyPrompt()
    for text in (*(each.content for each in judged.prompt), *judged.completions):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InvalidField("a text has half a character (a lone surrogate)", field="text")
        short_text("a text", text, MAX_TEXT_BYTES)
    if not all(each.strip() for each in judged.completions):
        raise InvalidField("a completion is empty", field="completions")


def _append(log: EventLog, batch: Iterable[tuple[Interaction, Feedback]]) -> int:
    """Interactions before the acts on them; of one interaction that several lines judge, one record."""
    pairs = list(batch)
    interactions = {each.interaction_id: each for each, _ in pairs}
    log.append_many(
        Topic.INTERACTIONS,
        [(name, encode_interaction(each, producer=PRODUCER)) for name, each in interactions.items()],
    )
    log.append_many(Topic.FEEDBACK, [(act.interaction_id, encode_feedback(act, producer=PRODUCER)) for _, act in pairs])
    return len(pairs)


def _bounded(lines: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their numbers from 1, empty ones left out; None for one that is too long, which is not kept."""
    number = 0
    while line := lines.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := lines.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        elif line.strip():
            yield number, line
