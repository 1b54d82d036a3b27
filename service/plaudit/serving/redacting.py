"""Redaction at the door: what people wrote, before the model, the log or anything else reads it.

What enters: a checked request or act. What leaves: the same with placeholders for the kinds of personal data that the
channel's settings name. The model reads the redacted request too, because it is trained on what the log holds, and must
be served what it was trained on (docs/privacy.md). Options of a choice stay: they are the product's own texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from plaudit.metrics import Metrics
from plaudit.redaction import redact
from plaudit.serving.validate import Envelope
from plaudit.types import Act, Channel, Comment, Correction


class Redactor:
    """Redacts by the settings of each channel; may be asked from any thread."""

    def __init__(self, kinds: Callable[[Channel], Collection[str]], metrics: Metrics) -> None:
        self._kinds = kinds
        self._metrics = metrics

    def envelope(self, envelope: Envelope) -> Envelope:
        """The request with redacted messages and passages."""
        kinds = self._kinds(envelope.channel)
        if not kinds:
            return envelope
        request = dataclasses.replace(
            envelope.request,
            messages=tuple(
                dataclasses.replace(each, content=self._text(each.content, kinds)) for each in envelope.request.messages
            ),
            passages=tuple(
                dataclasses.replace(each, text=self._text(each.text, kinds)) for each in envelope.request.passages
            ),
        )
        return dataclasses.replace(envelope, request=request)

    def act(self, channel: Channel, act: Act) -> Act:
        """The act with redacted text, if it has any."""
        if isinstance(act, Comment | Correction) and (kinds := self._kinds(channel)):
            return dataclasses.replace(act, text=self._text(act.text, kinds))
        return act

    def _text(self, text: str, kinds: Collection[str]) -> str:
        clean, found = redact(text, kinds)
        for kind, count in found.items():
            self._metrics.redactions.labels(kind).inc(count)
        return clean
