"""What a process knows of the model that its servers run: tokens, digest, and log-probs to know the base by.

In: `model.path`. Out: the same encoding and the same digest as a process that runs the model itself, without loading
the weights; they are loaded once per data directory, to ask the servers whether they run the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoConfig, AutoTokenizer

from plaudit.engine import source
from plaudit.engine.base import end_of_turn, eos_ids, generation_config
from plaudit.engine.chat import Chat
from plaudit.engine.limits import DEFAULT_CONTEXT
from plaudit.engine.protocol import EncodedPrompt
from plaudit.errors import Misconfigured
from plaudit.store.files import private_folder
from plaudit.types import Message

if TYPE_CHECKING:
    from plaudit.settings import Settings

_SAID = "one two three"
_TEXT = " The tea is ready, and the garden is quiet in the afternoon light."


class LocalModel:
    """Tokenizer, chat template and digest of a model that runs elsewhere."""

    def __init__(self, path: str | Path) -> None:
        place = source.find(path)
        folder, more = str(place.folder), place.options
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, **more)
            config = AutoConfig.from_pretrained(folder, **more)
            generation = generation_config(place.folder, config)
        except Exception as error:
            # The library raises what it likes for a folder that is incomplete or damaged.
            raise Misconfigured(
                f"the model at {str(path)!r} cannot be read ({type(error).__name__}); give a folder with config.json, "
                "safetensors and tokenizer: the same that the servers run",
                setting="model.path",
            ) from error
        self._chat = Chat(self._tokenizer)
        self._positions = int(getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT)
        self.eos_ids = eos_ids(generation, self._tokenizer)
        self.end_of_turn = end_of_turn(self._tokenizer, self.eos_ids)
        self.digest = source.digest(place, self._tokenizer)

    def context_length(self, wanted: int) -> int:
        """Tokens of prompt and completion together; `wanted` 0 is the model's own, at most 2,048."""
        return wanted or min(self._positions, DEFAULT_CONTEXT)

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """As Base.encode."""
        return self._chat.encode(messages)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """As Base.encode_text."""
        return self._chat.encode_text(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """As Base.decode."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


@dataclass(frozen=True, slots=True)
class Signature:
    """A text that a base is known by: its tokens, and the log-probs (nats) of those behind the prompt."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    logprobs: tuple[float, ...]


def signature(settings: Settings, digest: str) -> Signature:
    """The base's signature: what an earlier start wrote down, or computed here by loading the weights once."""
    file = settings.data_dir / f"base-{digest[:16]}.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Signature(tuple(found["prompt"]), tuple(found["completion"]), tuple(found["logprobs"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or a torn one
    made = _computed(settings)
    private_folder(settings.data_dir)
    file.write_text(json.dumps(asdict(made)), encoding="utf-8")
    return made


def _computed(settings: Settings) -> Signature:
    import torch

    from plaudit.engine.base import Base

    base = Base.of(settings)
    prompt, completion = base.encode([Message("user", _SAID)]).tokens, base.encode_text(_TEXT)
    tokens = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logits = base.logits(base.upper(base.trunk(tokens, 0), 0))[0]
        logprobs = torch.log_softmax(logits, dim=-1)  # (T, V)
    # The log-prob of a token stands at the position before it.
    found = [float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(completion)]
    if not all(map(math.isfinite, found)):
        raise Misconfigured("the base gives logits that are not numbers", setting="model.path")
    return Signature(prompt, completion, tuple(found))
