"""Questions about shops that no model can know: what retrieval gives, what feedback gives, and what both give.

A seeded town of invented shops enters by its constants; questions, passages and a hidden gold leave. Two populations
ask the same questions and like the same answers; one sends the passages that a search would have found, two for each
question, one of which is about another shop. Imported by simulated people only.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from plaudit.simulate.population import SimPrompt
from plaudit.types import FeedbackKind, Passage

from plaudit_instruction.population import People

NAMES = (
    *("Marlow", "Tessel", "Brindle", "Quarry", "Fenwick", "Osprey", "Larkin", "Dunmore", "Juniper", "Calder"),
    *("Winslow", "Haddon", "Pellam", "Rookwood", "Sable", "Thornby", "Ulverton", "Vintner", "Yarrow", "Zephyr"),
    *("Alder", "Bexley", "Corran", "Dovecote", "Elgin", "Farrow", "Garnet", "Hollis", "Ingram", "Jessop"),
    *("Kestrel", "Lowell", "Merrick", "Norcott", "Oakley", "Penrose", "Quill", "Ravel", "Selwyn", "Tamsin"),
)
TRADES = ("Bakery", "Bookshop", "Pharmacy", "Bike Shop", "Cafe", "Hardware Store")
STREETS = ("Mill Lane", "Harbour Road", "Station Street", "Church Row", "Orchard Way", "Bridge Street", "Castle Hill")
OWNERS = ("Ada Brook", "Ivan Petrov", "Mei Tanaka", "Omar Said", "Rosa Diaz", "Lena Vogel", "Paul Adeyemi")
OPENS, CLOSES = ("7:00", "7:30", "8:00", "8:30", "9:00", "9:30", "10:00"), ("5:00", "5:30", "6:00", "6:30", "7:15")
UNSEEN = ("owner",)  # Asked in evaluations only.
CHANNEL_SHOPS, EVALUATION_SHOPS = 200, 14  # A gate asks 60 prompts, an eighth of the channel's.
WEIGHTS: Mapping[str, float] = MappingProxyType({"right": 2.5, "nothing_made_up": 1.5, "short": 1.0, "speaks": 1.0})
SCALE = 6.0
SHORT, LONG = 14, 40  # Words: up to the first an answer is short, from the second on it is not at all.


@dataclass(frozen=True, slots=True)
class Shop:
    """An invented shop with its facts by kind."""

    name: str
    facts: Mapping[str, str]

    def said(self, kind: str) -> str:
        """A sentence that states a fact."""
        return {
            "opens": f"{self.name} opens at {self.facts['opens']} in the morning.",
            "closes": f"{self.name} closes at {self.facts['closes']} in the evening.",
            "street": f"{self.name} is on {self.facts['street']}.",
            "owner": f"The owner of {self.name} is {self.facts['owner']}.",
        }[kind]

    def asked(self, kind: str) -> str:
        """A question for a fact."""
        return {
            "opens": f"At what time does {self.name} open?",
            "closes": f"At what time does {self.name} close?",
            "street": f"On which street is {self.name}?",
            "owner": f"Who owns {self.name}?",
        }[kind]


_BARE_HOUR = r"\b(\d{1,2}) ?(?:am|pm|a\.m|p\.m|o'clock)"  # "8 am" states a time as well as "8:00".
_KINDS = ("opens", "closes", "street", "owner")
_VALUES: Mapping[str, Sequence[str]] = {"opens": OPENS, "closes": CLOSES, "street": STREETS, "owner": OWNERS}


@functools.cache
def _shops() -> tuple[Shop, ...]:
    rng = random.Random("shops")
    names = [f"{name} {trade}" for name in NAMES for trade in TRADES]
    chosen = rng.sample(names, CHANNEL_SHOPS + EVALUATION_SHOPS)
    return tuple(Shop(name, {kind: rng.choice(_VALUES[kind]) for kind in _KINDS}) for name in chosen)


def _prompts(shops: Sequence[Shop], kinds: Sequence[str], *, retrieved: bool) -> tuple[SimPrompt, ...]:
    found = []
    for place, shop in enumerate(shops):
        other = shops[(place + 1) % len(shops)]
        for kind in kinds:
            more = _KINDS[(_KINDS.index(kind) + 1) % len(_KINDS)]
            passages = [
                Passage(f"shop-{place}", f"{shop.said(kind)} {shop.said(more)}"),
                Passage("another", f"{other.said(kind)} {other.said(more)}"),
            ]
            random.Random(f"{shop.name}:{kind}").shuffle(passages)
            found.append(
                SimPrompt(
                    text=shop.asked(kind),
                    kind=kind,
                    check=shop.facts[kind],
                    topic=(shop.name,),
                    seen_kind=kind not in UNSEEN,
                    passages=tuple(passages) if retrieved else (),
                )
            )
    return tuple(found)


def read(prompt: SimPrompt, text: str) -> dict[str, float]:
    """The parts of the taste, each in [0, 1]; all 0 for a text without words."""
    words = re.findall(r"[A-Za-z0-9:']+", text)
    if not words:
        return dict.fromkeys(WEIGHTS, 0.0)
    times = prompt.kind in ("opens", "closes")
    named = set(re.findall(r"\d{1,2}:\d\d", text)) if times else {each for each in _VALUES[prompt.kind] if each in text}
    if times:
        named |= {f"{hour}:00" for hour in re.findall(_BARE_HOUR, text.lower())}
    others = named - {prompt.check}
    return {
        "right": float(prompt.check in named),
        "nothing_made_up": float(not others),
        "short": min(1.0, max(0.0, (LONG - len(words)) / (LONG - SHORT))),
        "speaks": float(any(word.lower() in ("you", "your") for word in words)),
    }


class _Shoppers(People):
    """People who ask about shops, want the right answer, in few words, and to be spoken to."""

    model: Literal["tiny", "smollm2"] = "smollm2"
    mix: Mapping[FeedbackKind, float] = MappingProxyType(
        {FeedbackKind.THUMBS: 0.4, FeedbackKind.CHOICE: 0.4, FeedbackKind.RANKING: 0.2}
    )
    taste = "Answer in one short sentence and speak to the reader as you."
    patterns = ("You can ask at {t}.",)
    part_names = tuple(WEIGHTS)
    threshold = 3.0
    retrieved = False

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """600 questions: three facts of 200 shops."""
        kinds = [kind for kind in _KINDS if kind not in UNSEEN]
        return _prompts(_shops()[:CHANNEL_SHOPS], kinds, retrieved=self.retrieved)

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """56 questions: four facts of 14 other shops."""
        return _prompts(_shops()[CHANNEL_SHOPS:], _KINDS, retrieved=self.retrieved)

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """Right, nothing made up, short, speaks."""
        return read(prompt, text)

    def value(self, parts: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
        """Gold units, 0 to 6."""
        liking = weights or {}
        total = sum(liking.get(name, 1.0) * weight * parts[name] for name, weight in WEIGHTS.items())
        return SCALE * total / sum(WEIGHTS.values())


class Shoppers(_Shoppers):
    """They send the question alone."""


class ShoppersWithPassages(_Shoppers):
    """They send what a search found, too."""

    retrieved = True
