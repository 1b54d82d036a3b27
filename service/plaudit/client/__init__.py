"""Plaudit's client, synchronous (`Plaudit`) and asyncio (`AsyncPlaudit`), with the same methods.

What enters: prompts, options, acts of people. What leaves: typed replies, and errors as the classes of
`plaudit.errors`. Calls with an idempotency key (requests, feedback, retractions) and reads are tried again if the error
is retryable; moves of releases are not. A server that is still starting is waited for. Never imports torch.

    with Plaudit("127.0.0.1:50051") as client:
        reply = client.generate("support", "How do I descale a kettle?", n=2)
        reply.choose(0, 1, rater="ana")

A service with keys and encryption: `Plaudit("plaudit.example:50051", key=..., root_certificates=Path("ca.pem"))`, or
the environment variables of `plaudit.access.credentials`.
"""

from plaudit.client.aio import AsyncPlaudit
from plaudit.client.catalogue import DeclaredDomain, ReleaseDetails
from plaudit.client.messages import BulkAcknowledged
from plaudit.client.replies import (
    Acknowledged,
    ActOptions,
    Begun,
    Decision,
    Delta,
    FeedbackGiver,
    RankedOption,
    Reply,
    ReplyCompletion,
    TokenLogprob,
    drafts,
)
from plaudit.client.requests import ChooseOptions, GenerateOptions
from plaudit.client.sync import Plaudit

__all__ = [
    "Acknowledged",
    "ActOptions",
    "AsyncPlaudit",
    "Begun",
    "BulkAcknowledged",
    "ChooseOptions",
    "Decision",
    "DeclaredDomain",
    "Delta",
    "FeedbackGiver",
    "GenerateOptions",
    "Plaudit",
    "RankedOption",
    "ReleaseDetails",
    "Reply",
    "ReplyCompletion",
    "TokenLogprob",
    "drafts",
]
