"""Text of tokens as they come: what is shown never changes afterwards, and the final text is what was shown.

In: token ids, one after another. Out: text that only grows. The final text of a completion is this fold over its
tokens, whether somebody listened or not, so a stream is a prefix of it by construction. For tokens whose text is whole
characters it is the tokenizer's own decoding.

Three things wait: bytes of a character whose other bytes are still to come, text that later tokens may change, and the
beginning of a stop string. Bytes whose rest never comes are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A decoder writes this for bytes that are no character (yet).
REPLACEMENT = "\ufffd"
# The longest character of UTF-8 has 4 bytes, so that at most 3 can wait for others.
WAITING_BYTES = 3


class GrowingText:
    """The text of a growing list of tokens, up to the first of `stops`."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        self._longest_stop = max((len(stop) for stop in self._stops), default=0)
        self._tokens: list[int] = []
        # The tokens from `_start` on are decoded at each step, and `_said` is what of their text is in `text` already.
        # All of the text of the tokens before `_read` is. Those from `_start` to `_read` are the context in which the
        # tokenizer decodes the others: a word at the very beginning would lose its space.
        self._start = 0
        self._read = 0
        self._said = ""
        self.text = ""
        self.stopped = False

    @property
    def count(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    @property
    def safe(self) -> str:
        """What may be shown now: `text` without an end that may be the beginning of a stop string."""
        return self.text[: len(self.text) - (0 if self.stopped else self._stop_begun())]

    def add(self, token: int) -> None:
        """Take the next token; nothing changes once a stop string was found."""
        if self.stopped:
            return
        self._tokens.append(token)
        window = self._decode(self._tokens[self._start :])
        if not window.startswith(self._said):
            if window.endswith(REPLACEMENT) and len(self._tokens) - self._read <= WAITING_BYTES:
                # A tokenizer that falls back to bytes decodes a whole run of them again: with half a character at its
                # end none of it is text, and with the other half all of it is.
                return
            window = self._begin_anew()
        held = len(window) - len(window.rstrip(REPLACEMENT))
        shown = window[: len(window) - min(held, WAITING_BYTES)]
        if len(shown) <= len(self._said):
            return
        self._take(shown[len(self._said) :])
        self._said = shown
        if shown == window:
            self._start, self._read = self._read, len(self._tokens)
            self._said = self._decode(self._tokens[self._start :])

    def _begin_anew(self) -> str:
        """Text of the last token that was read and those behind it, or of those alone if even the last one changes.

        Called if the decoder takes back what it said; that can't be unsaid.
        """
        for start in (max(0, self._read - 1), self._read):
            said = self._decode(self._tokens[start : self._read])
            window = self._decode(self._tokens[start:])
            if window.startswith(said):
                break
        self._start, self._said = start, said
        return window

    def _take(self, new: str) -> None:
        searched_from = max(0, len(self.text) - self._longest_stop + 1)
        self.text += new
        found = [at for at in (self.text.find(stop, searched_from) for stop in self._stops) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True

    def _stop_begun(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(
            (n for stop in self._stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])),
            default=0,
        )
