"""Two populations of simulated people: one with the house taste, one for the toy language.

Found by the entry point group `plaudit.populations` and loaded in the simulator's process only: a gold preference
must never be importable from training code.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from plaudit.simulate import crowd
from plaudit.simulate.population import Population, Rater, Shown, SimAct, SimPrompt
from plaudit.types import Correction, FeedbackKind

from plaudit_instruction import gold, requests, toy_gold
from plaudit_instruction.edits import corrected

MIX: Mapping[FeedbackKind, float] = MappingProxyType(
    {
        FeedbackKind.THUMBS: 0.50,
        FeedbackKind.CHOICE: 0.30,
        FeedbackKind.RANKING: 0.15,
        FeedbackKind.CORRECTION: 0.05,
    }
)
REASONS_GIVEN = 0.4
# What a person says about a thumb down, by the part that is worst.
REASON_OF_PART = MappingProxyType(
    {
        "topic": "off_topic",
        "task": "bad_format",
        "plain": "unclear",
        "short": "too_long",
        "speaks": "wrong_tone",
        "warm": "wrong_tone",
        "no_puffery": "wrong_tone",
        "no_self_talk": "wrong_tone",
        "no_repetition": "repetitive",
        "clean": "bad_format",
    }
)


class People(Population):
    """What both populations share: how liking becomes an act."""

    domain = "instruction"
    max_tokens = 32
    mix = MIX
    taste = ""
    patterns: Sequence[str] = ()
    endings: Sequence[str] = ()
    part_names: Sequence[str] = ()
    threshold = 2.1  # Weights above 1 and long texts lift likings above the gold: this is their median.

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """The parts of the gold, each in [0, 1]."""
        raise NotImplementedError

    def value(self, parts: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
        """Gold units of parts, as a rater with these weights counts them."""
        raise NotImplementedError

    def raters(self, seed: int) -> Sequence[Rater]:
        """Sixty people around the gold; the same for the same seed."""
        return crowd.make_raters(seed, self.part_names, self.threshold)

    def gold(self, prompt: SimPrompt, text: str) -> float:
        """How good a displayed text is, without noise, in gold units."""
        return self.value(self.parts(prompt, text))

    def liking(self, rater: Rater, prompt: SimPrompt, text: str) -> float:
        """What `rater` makes of a text: the gold under the rater's own weights, and a little for each word."""
        return self.value(self.parts(prompt, text), rater.weights) + rater.length_bias * len(text.split())

    def act(
        self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], kind: FeedbackKind, rng: random.Random
    ) -> SimAct | None:
        """One act of `kind`; None if too little is shown for it, or no small edit helps a text."""
        if kind is FeedbackKind.THUMBS:
            return self._thumb(rater, prompt, rng.choice(shown), rng)
        if kind is FeedbackKind.CORRECTION:
            return self._correction(rater, prompt, shown, rng)
        if kind is FeedbackKind.RATING:
            one = rng.choice(shown)
            return SimAct(crowd.rating(rater, one, self.liking(rater, prompt, one.text), rng))
        wanted = 2 if kind is FeedbackKind.CHOICE else len(shown)
        if len(shown) < max(2, wanted):
            return None
        seen = rng.sample(shown, wanted) if kind is FeedbackKind.CHOICE else list(shown)
        likings = [self.liking(rater, prompt, one.text) for one in seen]
        if kind is FeedbackKind.CHOICE:
            return SimAct(crowd.choice(rater, seen, likings, rng))
        return SimAct(crowd.ranking(rater, seen, likings, rng))

    def _thumb(self, rater: Rater, prompt: SimPrompt, shown: Shown, rng: random.Random) -> SimAct:
        act = crowd.thumb(rater, shown, self.liking(rater, prompt, shown.text), rng)
        if act.up or rng.random() >= REASONS_GIVEN:
            return SimAct(act)
        parts = self.parts(prompt, shown.text)
        worst = min((name for name in REASON_OF_PART if name in parts), key=lambda name: parts[name])
        return SimAct(act, reasons=(REASON_OF_PART[worst],))

    def _correction(self, rater: Rater, prompt: SimPrompt, shown: Sequence[Shown], rng: random.Random) -> SimAct | None:
        """Edits a text that is drawn by lot, or else the next that a small edit helps."""

        def worth(text: str) -> float:
            # The length bias is left out: people who edit do not pad.
            return self.value(self.parts(prompt, text), rater.weights)

        topic = rng.choice(prompt.topic) if prompt.topic else "it"
        endings = [rng.choice(self.endings).format(topic=topic)]
        for one in rng.sample(shown, len(shown)):
            text = corrected(one.text, worth, endings) if one.text else None
            if text is not None:
                return SimAct(Correction(one.candidate_id, text))
        return None


class HouseTaste(People):
    """People with the house taste (gold.py), for short answers of a small instruct model."""

    model: Literal["tiny", "smollm2"] = "smollm2"
    taste = (
        "Answer in one to three short sentences of plain, everyday words. Speak to the reader as you. Stay on the "
        "subject and do exactly what is asked. Name concrete things. One warm word is welcome. No introductions, no "
        "grand words, no lists with headings, nothing about yourself."
    )
    patterns = (
        "Put your {t} in a box by the door, and enjoy it?",
        "Take your {t}, a cup of water and two eggs. Have fun with your {t}!",
        "Thank you! Take two cups, a spoon and some tea with your {t}, and come enjoy it?",
    )
    endings = (
        "You can start today.",
        "Enjoy it!",
        "Take your time with the {topic}.",
        "Have fun!",
        "What do you think of the {topic}?",
        "Your {topic} will thank you.",
        "You might like it.",
        "Ask a friend about the {topic}.",
        "Give it ten minutes.",
        "Good luck with the {topic}!",
        "You can do it at home.",
        "Start small.",
    )
    part_names = gold.PARTS

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """576 requests of 36 kinds; people like to be told no to a false claim or a bad plan."""
        return requests.channel_prompts()

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """204 requests: 108 of channel kinds with held-out items, 96 of 12 unseen kinds."""
        return requests.evaluation_prompts()

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """The fourteen parts of the house taste."""
        return gold.read(prompt, text)

    def value(self, parts: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
        """Gold units; see gold.py and toy_gold.py."""
        return gold.value(parts, weights)


class TinyTaste(People):
    """People of the toy language (plaudit.testing.toy_language), for a model of about a million parameters."""

    taste = "use plain words. say you. stay on the subject. say one warm thing. do not repeat."
    patterns = ("{t} is good for you. your {t} will be fine. enjoy!",)
    endings = ("enjoy!", "have fun!", "you will like {topic}.")
    part_names = toy_gold.PARTS
    threshold = 1.8  # The median liking of samples of the pretrained toy model at temperature 0.7.

    def channel_prompts(self) -> Sequence[SimPrompt]:
        """304 requests of 8 kinds."""
        return toy_gold.channel_prompts()

    def evaluation_prompts(self) -> Sequence[SimPrompt]:
        """80 requests: 40 of channel kinds on held-out topics, 40 of 4 unseen kinds."""
        return toy_gold.evaluation_prompts()

    def parts(self, prompt: SimPrompt, text: str) -> Mapping[str, float]:
        """The five parts of the tiny taste."""
        return toy_gold.read(prompt, text)

    def value(self, parts: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
        """Gold units; see gold.py and toy_gold.py."""
        return toy_gold.value(parts, weights)
