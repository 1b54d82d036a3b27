"""What a turn leaves on the learner's disk so that the next one need not compute it again (docs/adr/0027).

Kept are trunk activations of the texts that evidence is about, and the base's answers, one file of each per channel.
A file holds what its turn used and no more, so that what evidence no longer has goes with the next turn, and all of it
goes with an erasure (`store.kept`). Nothing is trusted: a file that is damaged, or of another base, machine or version,
is passed over, and the turn computes what it would have computed without it. It then comes to the same, to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
import transformers
from torch import Tensor

import plaudit
from plaudit.engine.base import Base
from plaudit.engine.protocol import Engine, ReleaseKey
from plaudit.policy.rollout import TrainPrompt, sample
from plaudit.reward import flat
from plaudit.reward.completion import Completion
from plaudit.reward.trunk import TrunkCache
from plaudit.store.kept import Files
from plaudit.types import Sampling

log = structlog.get_logger(__name__)

FEATURES, ANSWERS = "features", "answers"


class _Place(NamedTuple):
    """Where an entry of the features' file begins, in rows of H numbers, its own rows, and whether `plain` follows."""

    at: int
    rows: int
    plain: bool


class Features:
    """Trunk activations of prompts and completions: implements `reward.trunk.KeptFeatures`."""

    def __init__(self, files: Files, base: Base, layers: tuple[int, int]) -> None:
        self._files, self._layers, self._hidden = files, list(layers), base.hidden_size
        self._places: dict[str, _Place] = {}
        # Only where a text's bits are its own do those of another turn stand for this one's.
        self._may = bool(files.most_bytes) and flat.stands_alone(base)
        if files.most_bytes and not self._may:
            log.warning("no features are kept", why="on this machine a text's bits depend on the texts beside it")
        found = files.read(FEATURES) if self._may else None
        if found is not None and found[0]["layers"] == self._layers:
            head, body = found
            at = 0
            for key, rows, plain in head["entries"]:
                self._places[key] = _Place(at, rows, plain)
                at += rows + 2 * plain
            self._numbers = body.view(np.float32).reshape(at, self._hidden)

    def prompt(self, prompt: tuple[int, ...]) -> Tensor | None:
        """As KeptFeatures.prompt."""
        place = self._places.get(_digest(prompt))
        return None if place is None else self._read(place.at, place.rows)

    def completion(self, completion: Completion) -> tuple[Tensor, Tensor | None] | None:
        """As KeptFeatures.completion."""
        place = self._places.get(_digest(*completion))
        if place is None:
            return None
        plain = self._read(place.at + place.rows, 2) if place.plain else None
        return self._read(place.at, place.rows), plain

    def _read(self, at: int, rows: int) -> Tensor:
        # A copy: the file may lie on a disk that goes away, and is only mapped.
        return torch.from_numpy(np.array(self._numbers[at : at + rows]))

    def keep(self, cache: TrunkCache) -> None:
        """Write what a turn's cache holds, in its order, as far as there is room."""
        if not self._may:
            return
        entries: dict[str, tuple[int, bool, list[Tensor]]] = {}
        left, known = self._files.most_bytes, 0
        for completion, prompt, states, plain in cache.held():
            parts = [states] if plain is None else [states, plain]
            several = {_digest(*completion): (len(states), plain is not None, parts)}
            known += next(iter(several)) in self._places
            if (of_prompt := _digest(completion.prompt)) not in entries:
                several[of_prompt] = (len(prompt), False, [prompt])
            left -= sum(4 * self._hidden * len(part) for _, _, parts in several.values() for part in parts)
            if left < 0:
                break
            entries |= several

        def body() -> Iterator[Any]:
            return (p.contiguous().numpy().view(np.uint8).data for _, _, parts in entries.values() for p in parts)

        head = {"layers": self._layers, "entries": [[key, rows, plain] for key, (rows, plain, _) in entries.items()]}
        self._files.counted(FEATURES, "kept", known)
        self._files.counted(FEATURES, "computed", len(cache) - known)
        self._files.write(FEATURES, head, body)


class Answer(NamedTuple):
    """What the base answered: tokens, the ending one included, and their text."""

    tokens: tuple[int, ...]
    text: str


class Answers:
    """The base's answers, drawn from one seed for several turns: a prompt's n-th answer is the same in all of them.

    Each is drawn in a batch of a fixed width, so that it depends on prompt, sampling, seed and number alone.
    """

    def __init__(self, files: Files, engine: Engine, release: ReleaseKey, seed: int) -> None:
        self._files, self._engine, self._release, self._seed = files, engine, release, seed
        found = files.read(ANSWERS)
        self._known: dict[str, list[Answer]] = {}
        if found is not None:
            self._known = {
                key: [Answer(tuple(t), s) for t, s in several] for key, several in found[0]["answers"].items()
            }
        self._used: dict[str, list[Answer]] = {}

    def of(
        self,
        prompts: Sequence[TrainPrompt],
        count: int,
        sampling: Sampling,
        *,
        many: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Answer]]:
        """The first `count` answers to each prompt; drawn in the widest batches if `many` are, else in the narrowest.

        More of a prompt continue what there is.
        """
        # vLLM servers have no widths.
        width = self._engine.widths[-1 if many else 0] if self._engine.widths else 0
        keys = [_answers_key(each, sampling, width, self._seed) for each in prompts]
        short: dict[int, dict[str, TrainPrompt]] = {}
        for key, prompt in zip(keys, prompts, strict=True):
            self._used.setdefault(key, self._known.get(key, []))
            if (have := len(self._used[key])) < count:
                short.setdefault(have, {})[key] = prompt
        for have, missing in sorted(short.items()):
            made = sample(
                self._engine,
                list(missing.values()),
                self._release,
                sampling,
                samples=count - have,
                first=have,
                seed=self._seed,
                seeded_by_prompt=True,
                width=width,
                progress=progress,
            )
            self._files.counted(ANSWERS, "computed", len(made))
            for i, key in enumerate(missing):
                own = made[i * (count - have) : (i + 1) * (count - have)]
                self._used[key] = [*self._used[key], *(Answer(s.generated.tokens, s.generated.text) for s in own)]
        drawn = sum((count - have) * len(missing) for have, missing in short.items())
        self._files.counted(ANSWERS, "kept", count * len(set(keys)) - drawn)
        return [self._used[key][:count] for key in keys]

    def keep(self) -> None:
        """Write what the turn used, if it fits."""
        answers = json.dumps(self._used)
        if self._used and len(answers) <= self._files.most_bytes:
            self._files.write(ANSWERS, {"answers": self._used}, tuple)


class Kept:
    """What of earlier turns one turn may use, and what it leaves in `files`."""

    def __init__(self, files: Files, *, base: Base, engine: Engine, release: ReleaseKey, seed: int) -> None:
        files.made_by(
            {
                "base": base.digest,
                "formats": f"{base.format} {engine.base_dtype}",
                "versions": f"{plaudit.__version__} {torch.__version__} {transformers.__version__}",
                "processor": f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}",
            }
        )
        self._base, self.files = base, files
        self.answers = Answers(files, engine, release, seed)

    def features(self, layers: tuple[int, int]) -> Features:
        """Activations of the input of one layer, and below another."""
        return Features(self.files, self._base, layers)


def _digest(*parts: Sequence[int]) -> str:
    """Of token ids, in hex."""
    return hashlib.sha256(";".join(",".join(map(str, part)) for part in parts).encode()).hexdigest()


def _answers_key(prompt: TrainPrompt, sampling: Sampling, width: int, seed: int) -> str:
    how = json.dumps([list(prompt.encoded.tokens), repr(sampling), width, seed])
    return hashlib.sha256(how.encode()).hexdigest()
