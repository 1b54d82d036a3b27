"""Orders films for people on MovieTweetings in time order: the loop beside popularity and item-item neighbours.

Requests are made of ratings of 7 and more by people with three ratings or more: the film itself and others drawn
evenly from those that anybody rated in the 30 days before, without those that the person has rated. The text of a film
says its year and kind, and as a candidate three figures in a digit each, reckoned from what came before:
how well known it is (ratings so far), how much talked about (ratings in a week), and how near to the person's films
(item-item neighbours). Policies learn from requests of the middle of the log (what was taken, of 10 candidates) and
are asked the end of it (50 candidates). Prints JSON lines. See docs/results.md.

    python benchmarks/recommendation.py ../shared/data/movietweetings --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import bisect
import json
import logging
import math
import platform
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from logged import ROUTES, Loop, Taken
from plaudit.engine.base import Base
from plaudit.settings import Settings, load_settings
from plaudit.types import FeedbackKind, Message, Option, Passage, RankingEvidence, Request
from plaudit_recommendation.plugin import Recommendation
from scipy.optimize import minimize

GOOD = 7  # Of 10; a rating from here on counts as taken.
LEAST_EVENTS = 3
EVENTS = 4  # Newest films of a person that a request tells.
WEEK, MONTH = 7 * 86_400, 30 * 86_400
TRAIN_FROM, TEST_FROM = 0.4, 0.8  # Shares of the log by time.
TRAIN_OPTIONS, TEST_OPTIONS = 10, 50
TOP = 20
MOST_OF_ONE = 3  # Requests of one person in training, and in the test.
FIGURES = ("known", "now", "near")
DIGITS = 9
KINDS = 1  # Of a film's, that its text tells.


@dataclass(frozen=True, slots=True)
class Rating:
    """A line of the log."""

    user: int
    film: int
    value: int
    at: int


@dataclass(frozen=True, slots=True)
class Film:
    """What is known of a film beside ratings."""

    title: str
    year: int
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A film as it stood when it was a candidate; figures in the order of FIGURES."""

    film: int
    figures: tuple[float, float, float]
    digits: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: the person's newest films with whether they were liked, and candidates, the taken one among them."""

    user: int
    events: tuple[tuple[int, bool], ...]
    candidates: tuple[Candidate, ...]
    taken: int  # Place among the candidates.
    new: bool  # Nobody had rated the taken film before.


class History:
    """What was known at a moment of the log; ratings are added in time order."""

    def __init__(self) -> None:
        self.films_of: defaultdict[int, list[tuple[int, bool]]] = defaultdict(list)
        self.users_of: defaultdict[int, set[int]] = defaultdict(set)
        self.times_of: defaultdict[int, list[int]] = defaultdict(list)

    def add(self, rating: Rating) -> None:
        """One rating more."""
        self.films_of[rating.user].append((rating.film, rating.value >= GOOD))
        self.users_of[rating.film].add(rating.user)
        self.times_of[rating.film].append(rating.at)

    def since(self, film: int, moment: int) -> int:
        """Ratings of a film from a moment on."""
        times = self.times_of.get(film, [])
        return len(times) - bisect.bisect_left(times, moment)

    def known(self, at: int) -> list[int]:
        """Films that anybody rated in the month before."""
        return [film for film, times in self.times_of.items() if times[-1] >= at - MONTH]

    def near(self, user: int, film: int) -> float:
        """Sum over the person's films of the cosine between who rated them and who rated this one."""
        own = self.users_of.get(film, set())
        if not own:
            return 0.0
        total = 0.0
        for other, _ in self.films_of[user]:
            raters = self.users_of[other]
            # The person is no evidence for the person.
            total += (len(own & raters) - (user in own and user in raters)) / math.sqrt(len(own) * len(raters))
        return total

    def candidate(self, user: int, film: int, at: int) -> Candidate:
        """A film's figures now. Digits are steps of the logarithm."""
        known, now = float(len(self.times_of.get(film, []))), float(self.since(film, at - WEEK))
        near = self.near(user, film)
        steps = (math.log2(1 + known), math.log2(1 + now) * 1.2, 2 * math.log2(1 + 64 * near) * 0.75)
        digits = [min(DIGITS, round(step)) for step in steps]
        return Candidate(film, (known, now, near), (digits[0], digits[1], digits[2]))


def read(folder: Path) -> tuple[list[Rating], dict[int, Film]]:
    """Ratings in time order, and films by id."""
    films = {}
    for line in (folder / "movies_50K.dat").read_text(encoding="utf-8").splitlines():
        number, name, kinds = (*line.split("::"), "")[:3]
        title, _, year = name.rpartition(" (")
        films[int(number)] = Film(title, int(year.rstrip(")") or 0), tuple(filter(None, kinds.split("|"))))
    lines = (folder / "ratings_first_40K_by_time.dat").read_text().splitlines()
    ratings = [Rating(*map(int, line.split("::"))) for line in lines if line]
    return sorted(ratings, key=lambda rating: rating.at), films


def requests(ratings: Sequence[Rating], wanted: Mapping[int, int], seed: int) -> dict[int, Asked]:
    """Requests at some places of the log, each with so many candidates; places without enough history are left out."""
    history, rng = History(), random.Random(seed)
    found = {}
    for place, rating in enumerate(ratings):
        events = history.films_of[rating.user]
        if place in wanted and len(events) >= LEAST_EVENTS:
            had = {film for film, _ in events} | {rating.film}
            others = [film for film in history.known(rating.at) if film not in had]
            films = [rating.film, *rng.sample(others, wanted[place] - 1)]
            rng.shuffle(films)
            found[place] = Asked(
                rating.user,
                tuple(events[-EVENTS:]),
                tuple(history.candidate(rating.user, film, rating.at) for film in films),
                films.index(rating.film),
                rating.film not in history.times_of,
            )
        history.add(rating)
    return found


def places(ratings: Sequence[Rating], first: float, last: float, count: int, seed: int) -> list[int]:
    """Places of good ratings between two shares of the log, at most MOST_OF_ONE of one person, drawn by lot."""
    size = len(ratings)
    every = [n for n in range(round(first * size), round(last * size)) if ratings[n].value >= GOOD]
    random.Random(seed).shuffle(every)
    earlier: Counter[int] = Counter()
    seen = [0] * size
    for n, rating in enumerate(ratings):
        seen[n] = earlier[rating.user]
        earlier[rating.user] += 1
    taken: Counter[int] = Counter()
    kept = []
    for n in every:
        if seen[n] >= LEAST_EVENTS and taken[ratings[n].user] < MOST_OF_ONE and len(kept) < count:
            taken[ratings[n].user] += 1
            kept.append(n)
    return kept


# Measures.

Scores = Callable[[Asked], Sequence[float]]


def measures(asked: Sequence[Asked], scores: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """recall@20 and nDCG@20 of each request. Equal scores share their places: the expectation over their orders."""
    recall, gain = [], []
    for one, values in zip(asked, scores, strict=True):
        own = values[one.taken]
        above = sum(value > own for value in values)
        equal = sum(value == own for value in values)
        shared = [place for place in range(above, above + equal) if place < TOP]
        recall.append(len(shared) / equal)
        gain.append(sum(1 / math.log2(2 + place) for place in shared) / equal)
    return {"recall": recall, "ndcg": gain}


def interval(asked: Sequence[Asked], values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over requests, and its 95% interval by bootstrap over people."""
    users = sorted({one.user for one in asked})
    at = {user: n for n, user in enumerate(users)}
    sums, counts = np.zeros(len(users)), np.zeros(len(users))
    for one, value in zip(asked, values, strict=True):
        sums[at[one.user]] += value
        counts[at[one.user]] += 1
    draws = np.random.default_rng(0).integers(len(users), size=(2000, len(users)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def conditional_logit(asked: Sequence[Asked]) -> Scores:
    """The plainest way to learn from the same requests: weights of the figures, squared ones too, by likelihood."""

    def features(one: Asked) -> np.ndarray:
        x = np.array([candidate.digits for candidate in one.candidates], dtype=float) / DIGITS
        return np.concatenate([x, x**2], 1)

    read_ = [(features(one), one.taken) for one in asked]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = 0.5 * 0.1 * float(weights @ weights), 0.1 * weights
        for x, taken in read_:
            values = x @ weights
            top = values.max()
            p = np.exp(values - top)
            total += float(np.log(p.sum()) + top - values[taken])
            slope = slope + x.T @ (p / p.sum()) - x[taken]
        return total, slope

    found = minimize(loss, np.zeros(2 * len(FIGURES)), jac=True, method="L-BFGS-B").x
    return lambda one: (features(one) @ found).tolist()


# The loop.


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How a film is told: its title or not, its figures or not."""

    films: Mapping[int, Film]
    titles: bool
    figures: bool

    def film(self, number: int) -> str:
        """What is known of a film beside ratings."""
        film = self.films.get(number, Film("unknown", 0, ()))
        return " ".join([*([film.title] if self.titles else []), str(film.year), *film.kinds[:KINDS]])

    def item(self, candidate: Candidate) -> str:
        """A candidate's text, with a digit per figure before it."""
        figures = f"{''.join(map(str, candidate.digits))} " if self.figures else ""
        return f"{figures}{self.film(candidate.film)}"

    def request(self, one: Asked) -> Request:
        """The request as a caller would send it. Films whose texts are the same are told apart by a number."""
        events = [Passage(f"film-{film}", self.film(film), "liked" if liked else "seen") for film, liked in one.events]
        texts: Counter[str] = Counter()
        options = []
        for candidate in one.candidates:
            text = self.item(candidate)
            texts[text] += 1
            options.append(Option(f"film-{candidate.film}", text if texts[text] == 1 else f"{text} ({texts[text]})"))
        return Request(messages=(Message("user", "what next?"),), passages=tuple(events), options=tuple(options))


def learnt(
    loop: Loop, words: Words, train: Sequence[Asked], test: Sequence[Asked], routes: Sequence[str]
) -> dict[str, Any]:
    """Scores of the test's options by each way to learn from the same requests, and by the base."""
    prompts = loop.prompts([words.request(one) for one in train], 0)
    held = loop.prompts([words.request(one) for one in test], 90_000)
    taken = [Taken(prompt, one.taken, f"user-{one.user}") for prompt, one in zip(prompts, train, strict=True)]
    return {"base": loop.scores(held, None)} | loop.learnt(taken, held, routes, _evident)


def _evident(ids: Sequence[str], place: int) -> RankingEvidence:
    """That one of the list was taken says that it comes first."""
    return RankingEvidence(order=(ids[place], *(each for n, each in enumerate(ids) if n != place)), observed=1)


def row(name: str, asked: Sequence[Asked], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """One way to order, on films that somebody had rated before and on those that nobody had."""
    every = measures(asked, scores)
    parts: dict[str, Any] = {"name": name}
    for group, new in (("rated before", False), ("new film", True)):
        kept = [n for n, one in enumerate(asked) if one.new is new]
        for measure, values in every.items():
            mean = interval([asked[n] for n in kept], [values[n] for n in kept])
            parts[f"{measure}@{TOP}, {group}"] = [round(each, 3) for each in mean]
    return parts


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The service's defaults, or a file's, with what a list of 50 wants.

    Scores are means over a dozen tokens, so that at the default temperature the first of 50 is little more probable
    than the last; and to be sure of one of 50 takes log 50, some 4 nats.
    """
    settings = load_settings(arguments.settings)
    policy = {"iterations": arguments.iterations, "temperature": 0.25, "choice_kl_target": 4.0}
    return settings.model_copy(update={"policy": settings.policy.model_copy(update=policy)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of MovieTweetings")
    parser.add_argument("--model", type=Path, default=Path("~/.cache/plaudit/tiny"), help="see plaudit model prepare")
    parser.add_argument("--settings", type=Path, help="a settings file; the service's defaults if there is none")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--train", type=int, default=192, help="requests to learn from")
    parser.add_argument("--test", type=int, default=60, help="requests to be judged by")
    parser.add_argument("--routes", nargs="*", default=["reward"], choices=ROUTES)
    parser.add_argument("--iterations", type=int, default=8, help="of the policy's optimiser")
    parser.add_argument("--titles", action="store_true", help="tell films by their titles too")
    parser.add_argument("--no-figures", action="store_true", help="leave the three figures out of the texts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    ratings, films = read(arguments.data)
    words = Words(films=films, titles=arguments.titles, figures=not arguments.no_figures)
    rows = []
    for seed in arguments.seeds:
        train_places = places(ratings, TRAIN_FROM, TEST_FROM, arguments.train, seed=seed + 1)
        test_places = places(ratings, TEST_FROM, 1.0, arguments.test, seed=1000 * seed)
        wanted = dict.fromkeys(train_places, TRAIN_OPTIONS) | dict.fromkeys(test_places, TEST_OPTIONS)
        every = requests(ratings, wanted, seed=seed)
        train, test = ([every[n] for n in several] for several in (train_places, test_places))
        plain: dict[str, Scores] = {
            "random": lambda one: [0.0] * len(one.candidates),
            "popularity": lambda one: [each.figures[0] for each in one.candidates],
            "popularity of a week": lambda one: [each.figures[1] for each in one.candidates],
            "item-item neighbours": lambda one: [each.figures[2] for each in one.candidates],
            "conditional logit on the figures": conditional_logit(train),
        }
        found = {name: [scores(one) for one in test] for name, scores in plain.items()}
        seconds: dict[str, float] = {}
        if arguments.routes:
            with tempfile.TemporaryDirectory() as folder:
                base = Base.load(arguments.model.expanduser(), device="cpu", dtype="float32")
                kind = FeedbackKind.SIGNAL
                loop = Loop(base, Recommendation(), settings_of(arguments), seed, Path(folder), kind=kind)
                found |= learnt(loop, words, train, test, arguments.routes)
                seconds = loop.seconds
        rows += [{"seed": seed, **row(name, test, scores)} for name, scores in found.items()]
        print(json.dumps({"seed": seed, "seconds": {name: round(each, 1) for name, each in seconds.items()}}))
        for each in rows[-len(found) :]:
            print(json.dumps(each), flush=True)
    print(
        json.dumps(
            {
                "requests": len(test),
                "people": len({one.user for one in test}),
                "torch": torch.__version__,
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
