"""What the members of a plugin may return: one set of rules for the guard at run time and for the conformance kit.

Enters: what a member returned. Leaves: what is wrong with it, in words without any text of people; empty if nothing is.
Pure. A plugin is foreign code: nothing is assumed about types, sizes or numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from plaudit.domain import Declaration, DecodeSpec, GateProbe, is_number
from plaudit.types import (
    MOST_REWARD,
    Action,
    Binary,
    Demo,
    Evidence,
    Label,
    Message,
    Option,
    Outcome,
    Pair,
    PairOutcome,
    Prompt,
    RankingEvidence,
    Request,
    RewardTerms,
    Sampling,
    Scalar,
)

MAX_RENDERED_BYTES = 64 * 65_536  # what a request may carry: 64 messages of 65,536 bytes
MAX_SHOWN_BYTES = 65_536
MIN_OPTIONS = 2
MAX_OPTIONS = 50
MAX_OPTION_ID_BYTES = 256
MAX_OPTION_BYTES = 4_096
MAX_COMPLETIONS = 8
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 1_000
MAX_STOPS = 8
MAX_STOP_BYTES = 64
MAX_EVIDENCE = 4_096  # of one act: more than all pairs of 50 options
MAX_SOURCE_BYTES = 128
MAX_MARGIN = 10.0  # scores of one prompt lie a few units apart; beyond what fp32 holds, a margin ends a fit
MAX_TOKENS = 2**31 - 1  # the service's own limit (serve.max_tokens) comes on top
MAX_PROBES = 10_000
MAX_SLICES = 64
_ROLES = ("system", "user", "assistant")
_HARM = re.compile(r"[a-z0-9_-]*")
# Reports and metrics carry the names of slices: short, and words rather than what people wrote.
_SLICE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,39}")


def prompt_fault(prompt: object, action: Action) -> str:
    """What is wrong with what `render` returned."""
    if not isinstance(prompt, Prompt):
        return f"a {type(prompt).__name__}, not a Prompt"
    if not isinstance(prompt.messages, tuple) or not isinstance(prompt.options, tuple):
        return "a prompt whose messages or options are not a tuple"
    for message in prompt.messages:
        if not isinstance(message, Message) or message.role not in _ROLES:
            return f"a message that is not a Message of one of the roles {', '.join(_ROLES)}"
    texts = [message.content for message in prompt.messages]
    if fault := _text_fault("a prompt", [*texts, prompt.group], MAX_RENDERED_BYTES):
        return fault
    if not any(text.strip() for text in texts):
        return "a prompt without text"
    if not prompt.group:
        return "a prompt whose group is empty"
    if "\0" in prompt.group:
        return "a prompt whose group contains a NUL byte"
    return options_fault(prompt.options, action)


def options_fault(options: Sequence[object], action: Action) -> str:
    """What is wrong with the options of a prompt; a choice without options has those of its request."""
    if not options:
        return ""
    if action is Action.COMPLETION:
        return "options, but the domain declares completions"
    if not MIN_OPTIONS <= len(options) <= MAX_OPTIONS:
        return f"{len(options)} options; a choice has {MIN_OPTIONS} to {MAX_OPTIONS}"
    for place, option in enumerate(options):
        if not isinstance(option, Option):
            return f"a {type(option).__name__} as option {place}, not an Option"
        if fault := _text_fault(f"the id of option {place}", [option.option_id], MAX_OPTION_ID_BYTES):
            return fault
        if fault := _text_fault(f"option {place}", [option.text], MAX_OPTION_BYTES):
            return fault
        if not option.option_id or not option.text:
            return f"option {place} without an id or a text"
        if "\0" in option.option_id + option.text:
            return f"option {place} with a NUL byte"
    known = [option for option in options if isinstance(option, Option)]
    if len({option.option_id for option in known}) != len(known):
        return "two options with one id"
    if len({option.text for option in known}) != len(known):
        return "two options with one text"
    return ""


def outcome_fault(outcome: object, output: str) -> str:
    """What is wrong with what `parse` returned for this output."""
    if not isinstance(outcome, Outcome):
        return f"a {type(outcome).__name__}, not an Outcome"
    if not isinstance(outcome.valid, bool):
        return "an outcome whose validity is not a bool"
    most = max(MAX_SHOWN_BYTES, 4 * len(output))
    if fault := _text_fault("an outcome", [outcome.displayed, outcome.why_invalid], most):
        return fault
    return "" if outcome.valid or outcome.why_invalid else "an invalid outcome that does not say why"


def spec_fault(spec: object) -> str:
    """What is wrong with what `decode_spec` returned."""
    if not isinstance(spec, DecodeSpec) or not isinstance(spec.sampling, Sampling):
        return f"a {type(spec).__name__}, not a DecodeSpec with a Sampling"
    sampling = spec.sampling
    if not _is_whole(spec.n, 1, MAX_COMPLETIONS):
        return f"n {_shown(spec.n)}; it must be 1 to {MAX_COMPLETIONS}"
    if not _is_whole(sampling.max_tokens, 1, MAX_TOKENS):
        return f"max_tokens {_shown(sampling.max_tokens)}; it must be 1 to {MAX_TOKENS}"
    if not _is_whole(sampling.top_k, 0, MAX_TOP_K):
        return f"top_k {_shown(sampling.top_k)}; it must be 0 to {MAX_TOP_K}"
    if not is_number(sampling.top_p) or not 0 < sampling.top_p <= 1:
        return f"top_p {_shown(sampling.top_p)}; it must be above 0, at most 1"
    temperature = sampling.temperature if spec.temperature is None else spec.temperature
    if not is_number(temperature) or not 0 <= temperature <= MAX_TEMPERATURE:
        return f"temperature {_shown(temperature)}; it must be 0 to {MAX_TEMPERATURE:g}"
    if not isinstance(sampling.stop, tuple) or not all(isinstance(stop, str) and stop for stop in sampling.stop):
        return "a stop that is not a text"
    if len(sampling.stop) > MAX_STOPS:
        return f"{len(sampling.stop)} stops; {MAX_STOPS} are allowed"
    return next((fault for stop in sampling.stop if (fault := _text_fault("a stop", [stop], MAX_STOP_BYTES))), "")


def terms_fault(terms: object) -> str:
    """What is wrong with what `reward` returned."""
    if not isinstance(terms, RewardTerms):
        return f"a {type(terms).__name__}, not RewardTerms"
    names = []
    for term in terms.terms:
        if not isinstance(term, tuple) or len(term) != 2 or not isinstance(term[0], str) or not term[0]:
            return "a term that is not a pair of a name and a number"
        if not is_number(term[1]) or not math.isfinite(term[1]):
            return f"a term of {_shown(term[1])}, which is not a finite number"
        names.append(term[0])
    if len(set(names)) != len(names):
        return "two terms that share a name"
    if abs(terms.total) > MOST_REWARD:
        return f"a total of {terms.total}; rewards lie within {-MOST_REWARD:g} to {MOST_REWARD:g}"
    return ""


def evidence_fault(items: Sequence[object], known: Iterable[str], declared: Declaration) -> str:
    """What is wrong with what `to_evidence` returned about an interaction with the candidates `known`."""
    if len(items) > MAX_EVIDENCE:
        return f"more than {MAX_EVIDENCE} pieces of evidence of one act"
    candidates = frozenset(known)
    return next((fault for item in items if (fault := _item_fault(item, candidates, declared))), "")


def _item_fault(item: object, known: frozenset[str], declared: Declaration) -> str:
    if not isinstance(item, Evidence):
        return f"a {type(item).__name__}, which is not a kind of evidence"
    names = candidates_of(item)
    if any(name not in known for name in names):
        return (
            "evidence on what is not a candidate of the interaction"  # the name stays out: it may be what was written
        )
    if len(set(names)) != len(names):
        return f"a {type(item).__name__} that names a candidate twice"
    return _text_fault("a source", [getattr(item, "source", "")], MAX_SOURCE_BYTES) or _value_fault(item, declared)


def _value_fault(item: Evidence, declared: Declaration) -> str:
    match item:
        case Pair() if not isinstance(item.outcome, PairOutcome) or not isinstance(item.tie_offered, bool):
            return f"a pair with the outcome {_shown(item.outcome)}, tie offered {_shown(item.tie_offered)}"
        case Pair() | Demo() if not is_number(item.margin) or not 0 <= item.margin <= MAX_MARGIN:
            return f"a margin of {_shown(item.margin)}; it must be 0 to {MAX_MARGIN:g}"
        case RankingEvidence() if len(item.order) < 2:
            return "a ranking of fewer than two candidates"
        case RankingEvidence() if item.observed is not None and not _is_whole(item.observed, 1, len(item.order)):
            return f"a ranking of {len(item.order)} candidates of which {item.observed} are in order"
        case Scalar() if not is_number(item.value) or not 0 <= item.value <= 1:
            return f"a scalar of {_shown(item.value)}, outside [0, 1]"
        case Binary() if not isinstance(item.positive, bool):
            return "a Binary that is neither good nor bad"
        case Label() if item.value not in declared.labels:
            return "a label that the domain does not declare"
        case Demo():
            return _text_fault("a demonstration", [item.text], MAX_SHOWN_BYTES)
    return ""


def candidates_of(item: Evidence) -> tuple[str, ...]:
    """Candidates that a piece of evidence names, each as often as it does."""
    match item:
        case Pair():
            return item.first, item.second
        case RankingEvidence():
            return item.order
        case _:
            return (item.candidate,)


def probes_fault(probes: Sequence[object]) -> str:
    """What is wrong with what `gates` returned."""
    if len(probes) > MAX_PROBES:
        return f"more than {MAX_PROBES} probes"
    ids = []
    for probe in probes:
        if not isinstance(probe, GateProbe) or not isinstance(probe.request, Request):
            return f"a {type(probe).__name__}, not a GateProbe with a Request"
        if not isinstance(probe.probe_id, str) or not probe.probe_id:
            return "a probe without an id"
        forbidden = probe.forbidden
        if not isinstance(forbidden, tuple) or not (forbidden or probe.forbidden_pattern):
            return f"probe {probe.probe_id!r}, which forbids nothing"
        if not all(isinstance(text, str) and text.strip() for text in forbidden):
            return f"probe {probe.probe_id!r}, which forbids an empty text"
        if not isinstance(probe.harm, str) or not _HARM.fullmatch(probe.harm):
            return f"harm {probe.harm!r}, which is not of a-z, 0-9, - and _"
        if not _is_pattern(probe.forbidden_pattern):
            return f"probe {probe.probe_id!r}, whose forbidden_pattern is not a regular expression"
        if not isinstance(probe.practice, bool):
            return f"probe {probe.probe_id!r}, whose practice is a {type(probe.practice).__name__}, not a bool"
        ids.append(probe.probe_id)
    return "" if len(set(ids)) == len(ids) else "two probes with one id"


def _is_pattern(text: object) -> bool:
    try:
        return isinstance(text, str) and bool(re.compile(text))
    except re.error:
        return False


def slices_fault(names: Sequence[object]) -> str:
    """What is wrong with what `slices` returned."""
    if len(names) > MAX_SLICES:
        return f"more than {MAX_SLICES} slices"
    for name in names:
        if not isinstance(name, str) or not name:
            return f"a slice that is a {type(name).__name__} or empty, not a name"
        if not _SLICE.fullmatch(name):
            # The name itself stays out: it may be what somebody wrote.
            return "a slice whose name is not 1 to 40 of a-z 0-9 _ . -"
    return ""


def _text_fault(what: str, texts: Iterable[object], most: int) -> str:
    """What is wrong with texts that together may have `most` bytes."""
    size = 0
    for text in texts:
        if not isinstance(text, str):
            return f"{what} with a {type(text).__name__} where a text belongs"
        try:
            size += len(text.encode())
        except UnicodeEncodeError:
            return f"{what} whose text is not valid Unicode (a lone surrogate)"
    return f"{what} of {size} bytes; {most} are allowed" if size > most else ""


def _shown(value: object) -> str:
    """A value in few words; of a text its type alone, as somebody may have written it."""
    if value is None or isinstance(value, int | float):
        return f"{value!r:.24}"
    return f"type {type(value).__name__}"


def _is_whole(value: object, low: float, high: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
