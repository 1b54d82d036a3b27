"""Redaction at the door: what people wrote, before the model, the log or anything else reads it.

What enters: a checked request or act. What leaves: the same with placeholders for the kinds of personal data that the
channel's settings name. The model reads the redacted request too, because it is trained on what the log holds, and must
be served what it was trained on (docs/privacy.md). Options of a choice stay: they are the product's own texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from plaudit.metrics import Metrics
from plaudit.privacy.redaction import Redaction
from plaudit.serving.validate import Envelope
from plaudit.types import Act, Channel, Comment, Correction


class Redactor:
    """Redacts by the settings of each channel; may be asked from any thread. Raises PluginFailed of a recogniser."""

    def __init__(self, of: Callable[[Channel], Redaction], metrics: Metrics) -> None:
        self._of = of
        self._metrics = metrics

    def envelope(self, envelope: Envelope) -> Envelope:
        """The request with redacted messages and passages."""
        redaction = self._of(envelope.channel)
        if not redaction:
            return envelope
        request = dataclasses.replace(
            envelope.request,
            messages=tuple(
                dataclasses.replace(each, content=self._text(each.content, redaction))
                for each in envelope.request.messages
            ),
            passages=tuple(
                dataclasses.replace(each, text=self._text(each.text, redaction)) for each in envelope.request.passages
            ),
        )
        return dataclasses.replace(envelope, request=request)

    def act(self, channel: Channel, act: Act) -> Act:
        """The act with redacted text, if it has any."""
        if isinstance(act, Comment | Correction) and (redaction := self._of(channel)):
            return dataclasses.replace(act, text=self._text(act.text, redaction))
        return act

    def _text(self, text: str, redaction: Redaction) -> str:
        clean, found = redaction(text)
        for kind, count in found.items():
            self._metrics.redactions.labels(kind).inc(count)
        return clean
