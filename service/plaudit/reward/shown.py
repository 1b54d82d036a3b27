"""The tokens of what people were shown.

Enters: a candidate as it was recorded, and what turns text into tokens. Leaves: token ids.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Protocol

from plaudit.types import Candidate


class Text(Protocol):
    """The part of a base that turns text to tokens and back."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a turn."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""


def shown_tokens(text: Text, candidate: Candidate) -> tuple[int, ...]:
    """The shortest prefix of the candidate's tokens whose decoding contains the displayed text.

    If none does (a rewrite, a redaction) the displayed text is tokenised again. Never ends in EOS.
    """
    if candidate.redacted:
        return text.encode_text(candidate.displayed_text)
    return shown_part(text, candidate.tokens, candidate.displayed_text)


def shown_part(text: Text, tokens: tuple[int, ...], displayed: str) -> tuple[int, ...]:
    """The same of tokens that nothing was redacted in."""
    if displayed in text.decode(tokens):
        # Text once complete stays complete as tokens follow, so the shortest prefix is found by bisection.
        lengths = range(len(tokens) + 1)
        return tokens[: bisect.bisect_left(lengths, True, key=lambda n: displayed in text.decode(tokens[:n]))]
    return text.encode_text(displayed)
