"""The receipt of an erasure: what was touched, in counts and ids, and a signature.

Enters: an erasure. Leaves: a document of plain JSON, its canonical text and an Ed25519 signature (RFC 8032) of that
text, which anybody verifies with the public key that stands beside it. Never holds a name, or what anybody wrote.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from plaudit.errors import InvalidField
from plaudit.evidence.tables import from_micros
from plaudit.privacy import erasure as erasures
from plaudit.privacy.erasure import DONE, Erasure
from plaudit.release.manifest import canonical_json
from plaudit.serving.keys import own_key
from plaudit.settings import Settings
from plaudit.store.database import Database

KEY_FILE = "receipt.key"
MOST_IDS = 10_000  # of interactions in a receipt; the digest covers all


@dataclass(frozen=True, slots=True)
class Receipt:
    """A signed receipt. `text`: canonical JSON of `facts`; `public_key` and `signature` in raw bytes (32 and 64)."""

    facts: dict[str, Any]
    text: str
    public_key: bytes
    signature: bytes

    def to_json(self) -> str:
        """For a file: what `verified` reads."""
        return json.dumps(
            {
                "receipt": self.facts,
                "algorithm": "Ed25519 over the receipt as JSON with sorted keys and no spaces, in UTF-8",
                "public_key": self.public_key.hex(),
                "signature": base64.b64encode(self.signature).decode(),
            },
            indent=2,
            ensure_ascii=False,
        )


def signing_key(settings: Settings) -> Ed25519PrivateKey:
    """The key of `privacy.receipt_key`, else the data directory's own, which is made if there is none."""
    given = settings.privacy.receipt_key.get_secret_value().encode() or own_key(settings.data_dir / KEY_FILE)
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"plaudit receipt\0" + given).digest())


def receipt(settings: Settings, database: Database, found: Erasure) -> Receipt:
    """The receipt of an erasure as it stands; `state` says whether it is done."""
    ids = erasures.interaction_ids(database, found.erasure_id)
    retire_by = found.found.retire_by
    facts: dict[str, Any] = {
        "erasure_id": found.erasure_id,
        "tenant": found.tenant,
        "person": found.person,
        "requested_at": _written(found.requested_at),
        "requested_by": found.requested_by,
        "state": state_of(found),
        "erased_at": _written(found.erased_at),
        "deleted": dict(sorted(found.found.counts.items())),
        "interactions": ids[:MOST_IDS],
        "interactions_digest": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        "releases": found.found.releases,
        "releases_out_of_service_by": None if retire_by is None else _written(from_micros(retire_by)),
        "models_retired_at": _written(found.models_retired_at),
        "log": _log(settings, found),
    }
    text, key = canonical_json(facts), signing_key(settings)
    return Receipt(facts, text, key.public_key().public_bytes_raw(), key.sign(text.encode()))


def state_of(found: Erasure) -> str:
    """How far it is: requested, erased (a release that learnt from the person is still in service) or done."""
    if found.step < DONE:
        return "requested"
    return "erased" if found.models_retired_at is None else "done"


def verified(text: str, public_key: bytes | None = None) -> dict[str, Any]:
    """The facts of a receipt's file, if its signature holds, under this key if one is given; raises InvalidField."""
    try:
        document = json.loads(text)
        key = bytes.fromhex(document["public_key"])
        signature = base64.b64decode(document["signature"], validate=True)
        facts: dict[str, Any] = document["receipt"]
        if public_key not in (None, key):
            raise InvalidField("the receipt was signed with another key", field="public_key")
        Ed25519PublicKey.from_public_bytes(key).verify(signature, canonical_json(facts).encode())
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidField(f"this is not a receipt of an erasure ({error})", field="receipt") from error
    except InvalidSignature as error:
        raise InvalidField("the signature does not fit: the receipt was changed", field="signature") from error
    return facts


def _log(settings: Settings, found: Erasure) -> str:
    if settings.log.kind != "kafka":
        return "the embedded log's records are deleted"
    days = settings.log.kafka.retention_days
    until = f"until {_written(found.requested_at + dt.timedelta(days=days))}" if days else "for ever"
    keys = "sealed ones cannot be read any more" if found.found.counts["keys"] else "none of them was sealed"
    return f"Kafka's topics keep records {until}: {keys}, and nothing reads them into the store again"


def _written(moment: dt.datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
