"""Personal data in texts, replaced by typed placeholders. Pure.

What enters: a text, and the kinds that a channel wants gone. What leaves: the text with `[EMAIL]`, `[PHONE]`, `[IBAN]`,
`[CARD]`, `[IP]` or `[SECRET]` in their places, and how many of each there were. Found by shape, and by checksum where
there is one (IBAN: ISO 13616, modulo 97; cards: ISO/IEC 7812, Luhn; addresses: as `ipaddress` reads them), so that an
order number stays. Names and places have no shape: finders of others may find them. Every expression takes time
linear in the text.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["email", "phone", "iban", "card", "ip", "secret"]

# Characters of an IBAN by country (the IBAN registry of SWIFT).
_IBAN_LENGTHS = {
    name: length
    for length, names in (
        (15, "NO"),
        (16, "BE"),
        (18, "DK FK FI FO GL NL SD"),
        (19, "MK SI"),
        (20, "AT BA EE KZ LT LU MN XK"),
        (21, "CH HR LI LV"),
        (22, "BG BH CR DE GB GE IE ME RS VA"),
        (23, "AE GI IL IQ OM SO TL"),
        (24, "AD CZ ES MD PK RO SA SE SK TN VG"),
        (25, "LY PT ST"),
        (26, "IS TR"),
        (27, "BI DJ FR GR IT MC MR SM"),
        (28, "AL AZ BY CY DO GT HU LB NI PL SV"),
        (29, "BR EG PS QA UA"),
        (30, "JO KW MU YE"),
        (31, "MT SC"),
        (33, "RU"),
    )
    for name in names.split()
}
_EMAIL = re.compile(r"[\w.%+\-]{1,64}@[\w\-]{1,63}(?:\.[\w\-]{1,63}){1,8}")
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}")
_CARD = re.compile(r"(?<![\d+])[2-6](?:[ \-]?\d){12,18}(?!\d)")
_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_PHONES = (
    re.compile(r"(?<![\w+])\+\d(?:[ ()./\-]{0,2}\d){7,14}(?!\d)"),
    re.compile(r"(?<![\w.,/\-])(?<!\d )\(?0\d(?:[ ()/\-]{0,3}\d){7,12}(?![\d.,]\d|\d)"),
    re.compile(r"(?<![\w.\-])\(?[2-9]\d{2}\)?[ .\-]\d{3}[ .\-]\d{4}(?!\d|-\d)"),
)
_SECRET_BLOCK = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]{0,20000}(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
)
_SECRET_VALUE = re.compile(
    r"(?i)\b(?:password|passwd|passwort|secret|token|api[_-]?key|access[_-]?key)[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
    r"(?P<value>[^\s\"',;\[][^\s\"',;]{5,200})"
)
_TOKEN = re.compile(r"(?<![\w\-.])eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*|(?<![\w+/=\-])[A-Za-z0-9+=_\-]{20,}(?![\w+/=\-])")
# A random text over 64 characters has about 4.2 bits per character at length 20; words run together have fewer.
_SECRET_BITS = 3.6

_PLACEHOLDER = re.compile(r"\[[A-Z][A-Z_]{0,31}\]")

_Span = tuple[int, int]
# First character, behind the last one, kind.
Found: TypeAlias = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Redaction:
    """What is replaced: kinds that are found by their shape, and what `finders` find afterwards."""

    kinds: Collection[str] = ()
    finders: tuple[Callable[[str], Sequence[Found]], ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self.kinds or self.finders)

    def __call__(self, text: str) -> tuple[str, Counter[str]]:
        """The text without them, and how many of each kind were replaced. Raises what a finder raises."""
        text, found = redact(text, self.kinds)
        for find in self.finders:
            # A placeholder is no person, whatever a finder takes it for.
            here = [match.span() for match in _PLACEHOLDER.finditer(text)]
            text = _replaced(text, _outside(here, find(text)), found)
        return text, found


def redact(text: str, kinds: Collection[str]) -> tuple[str, Counter[str]]:
    """The text without the given kinds, and how many of each were replaced."""
    found: Counter[str] = Counter()
    for kind, spans in _FINDERS:
        if kind in kinds:
            text = _replaced(text, ((start, end, kind) for start, end in spans(text)), found)
    return text, found


def _replaced(text: str, places: Iterable[Found], found: Counter[str]) -> str:
    """The text with placeholders; of places that overlap the first counts."""
    parts, at = [], 0
    for start, end, kind in places:
        if start >= at:
            parts += [text[at:start], f"[{kind.upper()}]"]
            found[kind] += 1
            at = end
    return "".join([*parts, text[at:]])


def _outside(spans: Sequence[_Span], places: Sequence[Found]) -> Iterator[Found]:
    """Those of the places that touch none of the spans; both in order."""
    at = 0
    for start, end, kind in places:
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at == len(spans) or spans[at][0] >= end:
            yield start, end, kind


def _matches(*expressions: re.Pattern[str], group: int | str = 0) -> Callable[[str], Iterator[_Span]]:
    def spans(text: str) -> Iterator[_Span]:
        yield from _apart(match.span(group) for expression in expressions for match in expression.finditer(text))

    return spans


def _apart(spans: Iterator[_Span]) -> Iterator[_Span]:
    """Spans in order; of two that overlap the first."""
    at = 0
    for start, end in sorted(spans):
        if start >= at:
            yield start, end
            at = end


def _ibans(text: str) -> Iterator[_Span]:
    for match in _IBAN_START.finditer(text):
        wanted = _IBAN_LENGTHS.get(match.group()[:2].upper(), 0)
        at = match.start()
        characters: list[str] = []
        while len(characters) < wanted and at < len(text):
            if text[at].isascii() and text[at].isalnum():
                characters.append(text[at].upper())
            elif text[at] not in " -" or text[at - 1] in " -":
                break
            at += 1
        whole = "".join(characters)
        ends = at == len(text) or not text[at].isalnum()
        if wanted and len(whole) == wanted and ends and _modulo_97(whole) == 1:
            yield match.start(), at


def _modulo_97(iban: str) -> int:
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


def _cards(text: str) -> Iterator[_Span]:
    for match in _CARD.finditer(text):
        if _luhn([int(digit) for digit in match.group() if digit.isdigit()]):
            yield match.span()


def _luhn(digits: list[int]) -> bool:
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _addresses(text: str) -> Iterator[_Span]:
    def real() -> Iterator[_Span]:
        for expression in (_IP4, _IP6):
            for match in expression.finditer(text):
                # Names in programs may look like an address of letters alone.
                if any(character.isdigit() for character in match.group()) and _is_address(match.group()):
                    yield match.span()

    yield from _apart(real())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _secrets(text: str) -> Iterator[_Span]:
    def all_of_them() -> Iterator[_Span]:
        yield from (match.span() for match in _SECRET_BLOCK.finditer(text))
        yield from (match.span("value") for match in _SECRET_VALUE.finditer(text))
        yield from (match.span() for match in _TOKEN.finditer(text) if _looks_random(match.group()))

    yield from _apart(all_of_them())


def _looks_random(token: str) -> bool:
    if token.startswith("eyJ") and token.count(".") == 2:
        return True
    classes = (str.islower, str.isupper, str.isdigit)
    if not all(any(of(character) for character in token) for of in classes):
        return False
    counts = Counter(token)
    bits = -sum(n / len(token) * math.log2(n / len(token)) for n in counts.values())
    return bits >= _SECRET_BITS


# In this order: what is longer and surer comes first, and a placeholder is nothing that a later one finds.
_FINDERS: tuple[tuple[str, Callable[[str], Iterator[_Span]]], ...] = (
    ("secret", _secrets),
    ("email", _matches(_EMAIL)),
    ("iban", _ibans),
    ("card", _cards),
    ("ip", _addresses),
    ("phone", _matches(*_PHONES)),
)
