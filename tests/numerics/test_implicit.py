"""Behaviour as evidence: pencil examples, and planted habits, errors and liking of the first place, found again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from plaudit.engine.base import Base
from plaudit.evidence.splits import Split
from plaudit.evidence.store import EvidenceRow, FrozenDataSet
from plaudit.learner.needs import judged_by
from plaudit.reward import likelihoods as like
from plaudit.reward.batch import Batch, Shared, Treatment
from plaudit.reward.comparisons import comparisons, complete_references, other_references, thumb_contrasts
from plaudit.reward.completion import Completion
from plaudit.reward.dataset import collect
from plaudit.reward.fit import fit_reward
from plaudit.reward.heads import Heads, fit_heads, fit_offsets
from plaudit.reward.implicit import MOST_NOISE, Noise, noise_rates, positions
from plaudit.reward.units import MOST_PLACES, NO_PLACE, Event, PairUnit, RankingUnit, Thumb, ThumbsUnit, Units
from plaudit.settings import GateSettings, ModelSettings, RewardSettings
from plaudit.testing.evidence import CHANNEL, START, make_candidate, make_interaction
from plaudit.testing.models import tiny_model
from plaudit.types import (
    Action,
    Binary,
    Evidence,
    FeedbackKind,
    Interaction,
    Pair,
    PairOutcome,
    RankingEvidence,
    Scalar,
)

DOUBLE = torch.float64
SIZE = 6  # Features of an option; the truth is linear in them.
SLATE = 5
# What people see of a slate: the second place seems 1 worse than the first, the last 2.5.
BIAS = np.array([0.0, -1.0, -1.6, -2.1, -2.5])


def event(name: str, who: str = "ann", kind: FeedbackKind = FeedbackKind.SIGNAL) -> Event:
    return Event(name, who, "g", kind, 1.0)


def completion(number: int) -> Completion:
    return Completion((1,), (number,))


# Positions within a rater's own values.


def test_a_value_stands_at_the_share_of_its_raters_values_below_it():
    # 1 below and itself of 3; equals share the middle of theirs: (0 + 2) / 2 of 4.
    assert positions([("a", 0.2), ("a", 0.9), ("a", 0.5)]) == pytest.approx([1 / 6, 5 / 6, 1 / 2])
    assert positions([("b", 0.3), ("b", 0.3), ("b", 0.8), ("b", 0.9)]) == pytest.approx([1 / 4, 1 / 4, 5 / 8, 7 / 8])


def test_values_of_another_rater_or_bucket_move_nothing():
    mine = [(("ann", "short"), 0.2), (("ann", "short"), 0.4)]
    others = [(("bob", "short"), 0.3), (("ann", "long"), 0.1)]
    assert positions([*mine, *others])[:2] == positions(mine)
    assert positions([("alone", 0.7)]) == [0.5]


# Rates of error.


def test_rates_of_error_by_pencil():
    # Bad ones seen positive 4 of 10: (.3 * 10 + 4) / 20; good ones seen negative 0 of 10: 3 / 20.
    said = {("ann", n): n >= 10 for n in range(20)}
    done = [("skip", ("ann", n), n >= 10 or n < 4) for n in range(20)]
    assert noise_rates(said, done, 0.3) == {"skip": Noise(pytest.approx(0.35), pytest.approx(0.15))}


def test_a_source_that_nobody_spoke_about_keeps_the_initial_rate_and_none_reaches_one_half():
    contrary = [*(("click", n, False) for n in range(1000)), ("click", 3000, True)]
    found = noise_rates(dict.fromkeys(range(1000), True), [*contrary, ("watched", 2000, True)], 0.3)
    assert found["watched"] == Noise(0.3, 0.3)
    assert found["click"].false_down == MOST_NOISE


def test_a_source_of_one_sign_keeps_the_initial_rate_however_often_it_is_right():
    # 990 of 1,000 skips are of bad ones; how many bad ones were not skipped nobody knows.
    said = {n: n < 10 for n in range(1000)}
    assert noise_rates(said, [("skip", n, False) for n in range(1000)], 0.3) == {"skip": Noise(0.3, 0.3)}


@pytest.mark.parametrize("seed", range(3))
def test_planted_rates_are_found(seed: int):
    rng = np.random.default_rng(seed)
    truth = {"click": Noise(0.4, 0.1), "skip": Noise(0.1, 0.25)}
    said, done = {}, []
    for n in range(6000):
        good = bool(rng.random() < 0.6)
        said[n] = good
        for source, noise in truth.items():
            wrong = rng.random() < (noise.false_down if good else noise.false_up)
            done.append((source, n, good != wrong))
    found = noise_rates(said, done, 0.3)
    for source, noise in truth.items():
        assert found[source].false_up == pytest.approx(noise.false_up, abs=0.03)
        assert found[source].false_down == pytest.approx(noise.false_down, abs=0.03)


# The forward-corrected losses.


def test_noisy_loss_by_pencil():
    # sigmoid(log 3) = 3/4; observed with .3 + (1 - .3 - .2) * 3/4 = .675.
    loss = like.noisy_loss(*(torch.tensor(value, dtype=DOUBLE) for value in (math.log(3), 0.3, 0.2)))
    assert loss.item() == pytest.approx(-math.log(0.675))


def test_a_contrast_turns_round_with_the_odds_of_two_errors():
    # .3 * .3 against .7 * .7.
    rate = torch.tensor(0.3, dtype=DOUBLE)
    assert like.turned(rate, rate).item() == pytest.approx(0.09 / 0.58)
    assert like.turned(rate, torch.zeros((), dtype=DOUBLE)).item() == 0


@pytest.mark.parametrize("treatment", ["contrast", "centred"])
def test_without_noise_the_losses_are_the_plain_ones(treatment: str):
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=DOUBLE, requires_grad=True)
    positive, mask = torch.tensor([True, False, False]), torch.ones(3, dtype=torch.bool)
    zeros, none = torch.zeros(3, dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)

    def loss(noise: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        if treatment == "contrast":
            return like.thumbs_contrast_loss(scores, positive, mask, none, noise=noise)
        return like.thumbs_centred_loss(scores, positive, mask, none, none, noise=noise)

    plain, noisy = loss(None), loss((zeros, zeros))
    assert noisy.item() == pytest.approx(plain.item())
    (one,) = torch.autograd.grad(plain, scores)
    (other,) = torch.autograd.grad(noisy, scores)
    assert torch.allclose(one, other)


def test_a_contrast_of_two_sources_has_an_error_rate_in_each_direction():
    # An up of (.3, .3) beside a down of (.05, .45): turned round with .3 * .45 / (.3 * .45 + .7 * .55), and missed with
    # .3 * .05 / (.3 * .05 + .7 * .95).
    false = 0.3 * 0.45 / (0.3 * 0.45 + 0.7 * 0.55)
    missed = 0.3 * 0.05 / (0.3 * 0.05 + 0.7 * 0.95)
    noise = (torch.tensor([0.3, 0.05], dtype=DOUBLE), torch.tensor([0.3, 0.45], dtype=DOUBLE))
    scores, positive = torch.tensor([0.7, 0.0], dtype=DOUBLE), torch.tensor([True, False])
    both, none = torch.ones(2, dtype=torch.bool), torch.zeros((), dtype=DOUBLE)
    loss = like.thumbs_contrast_loss(scores, positive, both, none, noise=noise)
    chance = 1 / (1 + math.exp(-0.7))
    assert loss.item() == pytest.approx(-math.log(false + (1 - false - missed) * chance))


def test_noise_bounds_what_one_signal_can_say():
    # However far apart the scores, a contrast that may be turned round costs at most -log of that chance.
    noise = (torch.full((2,), 0.3, dtype=DOUBLE), torch.full((2,), 0.3, dtype=DOUBLE))
    scores, positive = torch.tensor([-50.0, 50.0], dtype=DOUBLE), torch.tensor([True, False])
    everything, none = torch.ones(2, dtype=torch.bool), torch.zeros((), dtype=DOUBLE)
    loss = like.thumbs_contrast_loss(scores, positive, everything, none, noise=noise)
    assert loss.item() == pytest.approx(-math.log(0.09 / 0.58), rel=1e-6)


# The liking of the first place: planted, and found where the order was drawn.


def slates(
    rng: np.random.Generator, features: np.ndarray, worth: np.ndarray, count: int, *, leaning: float, drawn: bool
) -> tuple[list[RankingUnit], dict[Completion, float]]:
    """Choices of one among SLATE options whose order a policy made that leans towards what is good.

    A drawn order is Plackett-Luce over `leaning` times the worth; else the best come first.
    """
    units, leanings = [], {}
    for n in range(count):
        options = rng.choice(len(worth), SLATE, replace=False)
        policy = leaning * worth[options]
        order = np.argsort(-(policy + rng.gumbel(size=SLATE))) if drawn else np.argsort(-worth[options])
        shown = options[order]
        chosen = int(np.argmax(worth[shown] + BIAS + rng.gumbel(size=SLATE)))
        places = (chosen, *(place for place in range(SLATE) if place != chosen))
        name = f"{'drawn' if drawn else 'served'}/{n}"
        units.append(
            RankingUnit(event(name, f"r{n % 40}"), tuple(completion(int(shown[p])) for p in places), 1, places)
        )
        for option, value in zip(options, policy, strict=True):
            leanings[completion(int(option))] = float(value)
    return units, leanings


def units_of(rankings: Sequence[RankingUnit], leaning: dict[Completion, float]) -> Units:
    drawn = frozenset(unit.event.event_id for unit in rankings if unit.event.event_id.startswith("drawn"))
    return Units((), tuple(rankings), (), (), {}, drawn=drawn, leaning=leaning)


def fitted(units: Units, read: dict[Completion, torch.Tensor], offsets: torch.Tensor) -> Heads:
    batch = Batch(units.all, {}, heads=1, seed=0, treatment=Treatment.CONTRAST, bootstrap=False)
    x = torch.stack([read[each] for each in batch.completions])
    return fit_heads(batch, x, heads=1, center=0.01, offsets=offsets)


def offsets_of(units: Units, read: dict[Completion, torch.Tensor]) -> torch.Tensor:
    return fit_offsets(units, read, {}, treatment=Treatment.CONTRAST, center=0.01)


@pytest.mark.parametrize("leaning", [0.0, 1.0])
def test_the_places_offsets_are_found_in_drawn_orders(leaning: float):
    # The policy leans towards the good options, as after some releases: place and worth go together in its draws.
    rng = np.random.default_rng(5)
    features = rng.normal(size=(60, SIZE))
    # Half of the worth is not in the features: what a reward model cannot read must not pass for an offset.
    worth = features @ rng.normal(size=SIZE) / 2 + rng.normal(size=60)
    read = {completion(n): torch.tensor(features[n], dtype=torch.float32) for n in range(60)}
    rankings, leanings = slates(rng, features, worth, 3000, leaning=leaning, drawn=True)
    offsets = offsets_of(units_of(rankings, leanings), read)
    assert len(offsets) == MOST_PLACES - 1
    np.testing.assert_allclose(offsets[: SLATE - 1].numpy(), BIAS[1:], atol=0.4)
    assert offsets[SLATE - 1 :].abs().max() < 1e-4  # Nothing stood there.


def test_served_orders_alone_tell_no_offset():
    rng = np.random.default_rng(6)
    features = rng.normal(size=(60, SIZE))
    rankings, leanings = slates(rng, features, features @ np.ones(SIZE) / 2, 300, leaning=1.0, drawn=False)
    read = {completion(n): torch.tensor(features[n], dtype=torch.float32) for n in range(60)}
    assert not offsets_of(units_of(rankings, leanings), read).any()


def test_with_offsets_the_true_order_is_found_and_without_them_it_is_not():
    # A policy that has one feature upside down shows its favourites first, and people take what stands first. A tenth
    # of the orders is drawn. Without offsets the reward model learns the policy's taste instead of people's.
    rng = np.random.default_rng(7)
    features = rng.normal(size=(80, SIZE))
    taste = np.ones(SIZE) / 2
    worth, wrong = features @ taste, features @ (taste * np.array([-3, 1, 1, 1, 1, 1]))
    read = {completion(n): torch.tensor(features[n], dtype=torch.float32) for n in range(80)}
    rankings, leanings = [], {}
    for n in range(2000):
        options = rng.choice(80, SLATE, replace=False)
        drawn = n % 10 == 0
        noise = rng.gumbel(size=SLATE) if drawn else 0.0
        shown = options[np.argsort(-(wrong[options] + noise))]
        chosen = int(np.argmax(worth[shown] + BIAS + rng.gumbel(size=SLATE)))
        places = (chosen, *(place for place in range(SLATE) if place != chosen))
        order = tuple(completion(int(shown[p])) for p in places)
        rankings.append(RankingUnit(event(f"{'drawn' if drawn else 'served'}/{n}"), order, 1, places))
        for option in options:
            leanings[completion(int(option))] = float(wrong[option])
    units = units_of(rankings, leanings)

    def agreement(offsets: torch.Tensor) -> float:
        scores = fitted(units, read, offsets).score(torch.tensor(features, dtype=torch.float32))[:, 0].numpy()
        lead, truth = scores[:, None] - scores[None, :], worth[:, None] - worth[None, :]
        return float((np.sign(lead) == np.sign(truth))[~np.eye(80, dtype=bool)].mean())

    with_offsets, without = agreement(offsets_of(units, read)), agreement(torch.zeros(MOST_PLACES - 1))
    assert with_offsets > 0.9
    assert without < 0.8


def test_an_offset_moves_pairs_and_signals_as_it_moves_choices():
    shared = Shared.start(dtype=DOUBLE, offsets=torch.tensor([-1.0] * (MOST_PLACES - 1)))
    pair = PairUnit(event("p"), completion(1), completion(2), 1, False, 0.0, (1, 0))
    thumbs = (
        Thumb(event("u"), completion(1), True, place=1),
        Thumb(event("d"), completion(2), False, place=0),
    )
    for unit in (pair, ThumbsUnit("ann", thumbs)):
        batch = Batch([unit], {}, heads=1, seed=0, treatment=Treatment.PLAIN, bootstrap=False)
        scores = torch.tensor([[0.5], [0.2]], dtype=DOUBLE)
        # .5 - 1 against .2: what stood first was passed over.
        assert batch.loss(scores, shared).item() == pytest.approx(math.log(1 + math.exp(0.7)))


# Noise in a fit: the truth is found although each signal errs at a rate of its own.


def signals(rng: np.random.Generator, worth: np.ndarray, noise: dict[str, Noise]) -> list[ThumbsUnit]:
    found = []
    for rater in range(60):
        thumbs = []
        for n in rng.choice(len(worth), 20, replace=False):
            source = ("click", "skip")[int(rng.integers(2))]
            good = rng.random() < 1 / (1 + np.exp(-3 * worth[n]))
            wrong = rng.random() < (noise[source].false_down if good else noise[source].false_up)
            thumbs.append(
                Thumb(
                    event(f"{rater}/{n}", f"r{rater}"),
                    completion(int(n)),
                    bool(good != wrong),
                    source,
                    noise=noise[source],
                )
            )
        found.append(ThumbsUnit(f"r{rater}", tuple(thumbs)))
    return found


@pytest.mark.parametrize(("treatment", "least"), [(Treatment.CENTRED, 2.0), (Treatment.PLAIN, 1.2)])
def test_with_rates_of_error_the_scores_are_as_decided_as_people_are(treatment: Treatment, least: float):
    # People find an option good with the log-odds 3 x worth. Taken for what people think, signals flatten that; the
    # rates bring it back (in full where scores are centred; a contrast's correction is exact at the ends alone).
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, SIZE))
    worth = features @ rng.normal(size=SIZE) / 2
    units = signals(rng, worth, {"click": Noise(0.4, 0.1), "skip": Noise(0.05, 0.35)})
    plain = [ThumbsUnit(u.who, tuple(dataclasses.replace(t, noise=Noise()) for t in u.thumbs)) for u in units]
    zero = Completion((1,), (999,))
    read = {completion(n): torch.tensor(features[n], dtype=torch.float32) for n in range(120)}
    read[zero] = torch.zeros(SIZE)

    def slope(several: Sequence[ThumbsUnit]) -> float:
        batch = Batch(several, {"g": (zero,)}, heads=1, seed=0, treatment=treatment, bootstrap=False)
        heads = fit_heads(batch, torch.stack([read[e] for e in batch.completions]), heads=1, center=0.01)
        scores = heads.score(torch.tensor(features, dtype=torch.float32))[:, 0] * heads.shared.log_kappa.exp()
        assert np.corrcoef(scores.numpy(), worth)[0, 1] > 0.95
        return float(np.polyfit(worth, scores.numpy(), 1)[0])

    corrected, uncorrected = slope(units), slope(plain)
    assert least < corrected < 4
    assert corrected > 1.3 * uncorrected


# From the log's records to units.


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base.load(tiny_model(tmp_path_factory.mktemp("models") / "tiny"), device="cpu", dtype="float32")


def slate(name: str, texts: Sequence[str], *, drawn: bool, action: Action = Action.CHOICE) -> Interaction:
    candidates = tuple(
        dataclasses.replace(
            make_candidate(f"c{n}"), text=text, displayed_text=text, tokens=(), probability=0.5 ** (n + 1)
        )
        for n, text in enumerate(texts)
    )
    return dataclasses.replace(
        make_interaction(name, group="g"), action=action, candidates=candidates, order_logprob=-1.0 if drawn else 0.0
    )


def frozen(
    interactions: Sequence[Interaction], rows: Sequence[tuple[str, FeedbackKind, Evidence, str]]
) -> FrozenDataSet:
    return FrozenDataSet(
        channel=CHANNEL,
        as_of=START,
        digest="",
        offsets=(),
        rows=tuple(
            EvidenceRow(
                interaction_id=name,
                feedback_id=f"f{n}",
                index=0,
                kind=kind,
                evidence=evidence,
                who=who,
                accepted_at=START,
                rater_split=Split.TRAIN,
                group_split=Split.TRAIN,
                prompt_group="g",
            )
            for n, (name, kind, evidence, who) in enumerate(rows)
        ),
        interactions={each.interaction_id: each for each in interactions},
    )


TEXTS = ("tea", "rain", "book", "walk")
PICK = RankingEvidence(order=("c2", "c0", "c1", "c3"), observed=1)


def test_a_choice_among_shown_options_knows_where_they_stood_and_whether_chance_put_them_there(base: Base):
    rows = [("served", FeedbackKind.SIGNAL, PICK, "ann"), ("drawn", FeedbackKind.SIGNAL, PICK, "ann")]
    data = frozen([slate("served", TEXTS, drawn=False), slate("drawn", TEXTS, drawn=True)], rows)
    units = collect(data, Split.TRAIN, base, RewardSettings())
    assert [(unit.observed, unit.places) for unit in units.rankings] == [(1, (2, 0, 1, 3))] * 2
    assert units.drawn == {"drawn/f1/0"}
    # Halves of halves: neighbours differ by log 2, and the mean is taken off.
    assert sorted(units.leaning.values()) == pytest.approx([each * math.log(2) for each in (-1.5, -0.5, 0.5, 1.5)])
    # What behaviour took from an order that nobody drew says nothing of who is better.
    assert len(comparisons(units, behaviour=True)) == 3
    assert not comparisons(units)
    # Without offsets of places the policy's own order leads people all the same.
    units = collect(data, Split.TRAIN, base, RewardSettings(place_offsets=False))
    assert len(comparisons(units, behaviour=True)) == 3


def test_answers_that_were_generated_stand_in_no_order_that_leads_behaviour(base: Base):
    """A regenerated answer that was kept: chance alone put the two where they stood."""
    kept = Pair(first="c1", second="c0", outcome=PairOutcome.FIRST)
    made = slate("i", TEXTS, drawn=False, action=Action.COMPLETION)
    units = collect(frozen([made], [("i", FeedbackKind.SIGNAL, kept, "ann")]), Split.TRAIN, base, RewardSettings())
    assert len(comparisons(units, behaviour=True)) == 1
    assert not comparisons(units)


def test_what_behaviour_prefers_weighs_as_behaviour_whatever_its_shape(base: Base):
    pair = Pair(first="c1", second="c0", outcome=PairOutcome.FIRST)
    rows = [("i", kind, each, "ann") for kind in (FeedbackKind.CHOICE, FeedbackKind.SIGNAL) for each in (pair, PICK)]
    settings = RewardSettings(rater_cap=1e6)
    units = collect(frozen([slate("i", TEXTS, drawn=True)], rows), Split.TRAIN, base, settings)
    for said, done in (units.pairs, units.rankings):
        assert done.event.weight / said.event.weight == pytest.approx(0.3)
        # What people choose is pulled by places as well.
        assert said.places == done.places
        assert NO_PLACE not in said.places


def test_behaviour_never_judges_if_people_said_enough():
    def ranked(name: str, kind: FeedbackKind) -> RankingUnit:
        return RankingUnit(event(name, kind=kind), (completion(1), completion(2)), 1, (0, 1))

    def thumbs(who: str, count: int, kind: FeedbackKind) -> ThumbsUnit:
        several = (Thumb(event(f"{who}/{n}", who, kind), completion(n), n % 2 == 0) for n in range(count))
        return ThumbsUnit(who, tuple(several))

    def judged(rankings: Sequence[RankingUnit], rated: Sequence[ThumbsUnit]) -> tuple[int, bool]:
        found, by_pairs = judged_by(
            Units((), tuple(rankings), (), tuple(rated), {}), GateSettings(reward_comparisons=4)
        )
        return len(found), by_pairs

    clicks = [ranked(f"drawn/{n}", FeedbackKind.SIGNAL) for n in range(5)]
    said = [ranked(f"said/{n}", FeedbackKind.CHOICE) for n in range(4)]
    rated, watched = thumbs("ann", 4, FeedbackKind.THUMBS), thumbs("bob", 8, FeedbackKind.SIGNAL)
    assert judged([*clicks, *said], [rated]) == (4, True)
    assert judged([*clicks, *said[:3]], [rated])[1] is False
    assert judged([*clicks, *said[:3]], [watched]) == (8, True)
    assert thumb_contrasts(Units((), (), (), (watched, rated), {}), None) == thumb_contrasts(
        Units((), (), (), (rated,), {}), None
    )


def test_a_thumb_of_a_choice_is_centred_on_the_options_of_its_own_request(base: Base):
    """Another slate of the same prompt, all of better options, made a good one look bad."""
    slates = {"i": ["tea", "rain"], "j": ["book", "walk", "cup"]}
    rows = [(name, FeedbackKind.THUMBS, Binary(candidate="c0", positive=name == "i"), "ann") for name in slates]
    asked = [slate(name, texts, drawn=False) for name, texts in slates.items()]
    data = frozen(asked, rows)
    (unit,) = collect(data, Split.TRAIN, base, RewardSettings()).thumbs
    elsewhere = {"g": (Completion(asked[0].prompt_tokens, base.encode_text("warm")),)}
    found = complete_references(data, base, {}, groups=["g"], most=50)
    for thumb in unit.thumbs:
        for references in ({}, elsewhere, found):
            cited = other_references(thumb, references)
            assert [base.decode(each.shown) for each in cited] == slates[thumb.event.interaction_id][1:]
        assert not other_references(thumb, None)
    batch = Batch([unit], {}, heads=1, seed=0, treatment=Treatment.CONTRAST, bootstrap=False)
    assert len(batch.completions) == 5
    plain = Batch([unit], found, heads=1, seed=0, treatment=Treatment.PLAIN, bootstrap=False)
    assert len(plain.completions) == 2


def test_places_have_no_say_in_what_people_say_in_completions_or_if_switched_off(base: Base):
    said = [
        ("i", FeedbackKind.RANKING, PICK, "ann"),
        ("i", FeedbackKind.THUMBS, Binary(candidate="c1", positive=True), "a"),
    ]
    done = [
        ("i", FeedbackKind.SIGNAL, PICK, "ann"),
        ("i", FeedbackKind.SIGNAL, Binary(candidate="c1", positive=True), "a"),
    ]
    cases = [
        (said, slate("i", TEXTS, drawn=True), RewardSettings()),
        (done, slate("i", TEXTS, drawn=True, action=Action.COMPLETION), RewardSettings()),
        (done, slate("i", TEXTS, drawn=True), RewardSettings(place_offsets=False)),
    ]
    for rows, interaction, settings in cases:
        units = collect(frozen([interaction], rows), Split.TRAIN, base, settings)
        assert not units.drawn
        assert {place for unit in units.rankings for place in unit.places} == {NO_PLACE}
        assert {thumb.place for unit in units.thumbs for thumb in unit.thumbs} == {NO_PLACE}


def test_signals_carry_rates_learnt_from_who_also_said_what_they_think(base: Base):
    interactions = [slate(f"i{n}", (f"tea {n}", "rain"), drawn=False) for n in range(10)]
    rows = [(f"i{n}", FeedbackKind.THUMBS, Binary(candidate="c0", positive=n % 2 == 0), "ann") for n in range(10)]
    rows += [
        (f"i{n}", FeedbackKind.SIGNAL, Binary(candidate="c0", positive=n != 8, source="click"), "ann")
        for n in range(10)
    ]
    rows += [("i0", FeedbackKind.SIGNAL, Binary(candidate="c1", positive=False, source="skip"), "bob")]
    units = collect(frozen(interactions, rows), Split.TRAIN, base, RewardSettings())
    # All five bad ones were clicked: (3 + 5) / 15, more than the most; one good one was left: (3 + 1) / 15.
    assert units.noise == {"click": Noise(MOST_NOISE, pytest.approx(4 / 15)), "skip": Noise(0.3, 0.3)}
    by_kind = {thumb.event.kind: thumb.noise for unit in units.thumbs for thumb in unit.thumbs if unit.who == "ann"}
    assert by_kind[FeedbackKind.THUMBS] == Noise()
    assert by_kind[FeedbackKind.SIGNAL] == units.noise["click"]
    assert not collect(frozen(interactions, rows), Split.TRAIN, base, RewardSettings(signal_noise=0)).noise


def test_fractions_watched_count_by_their_position_among_those_of_like_items(base: Base):
    # Everybody finishes short items: among them even .9 is little. Each rater's scale is its own.
    watched = [("short", 0.9), ("short", 1.0), ("long", 0.1), ("long", 0.2), ("long", 0.3)]
    interactions = [slate(f"i{n}", (f"tea {n}", "rain"), drawn=False) for n in range(5)]
    rows = [
        (f"i{n}", FeedbackKind.SIGNAL, Scalar(candidate="c0", value=value, source=source), who)
        for n, (source, value) in enumerate(watched)
        # Bob finishes nothing: beside his values all of Ann's would be high.
        for who, value in (("ann", value), ("bob", value / 100))
    ]
    unit, his = collect(frozen(interactions, rows), Split.TRAIN, base, RewardSettings()).thumbs
    assert [thumb.positive for thumb in his.thumbs] == [thumb.positive for thumb in unit.thumbs]
    found = {thumb.event.interaction_id: (thumb.positive, thumb.event.weight) for thumb in unit.thumbs}
    assert [found.get(f"i{n}", (None, 0))[0] for n in range(5)] == [False, True, False, None, True]
    # Positions 1/4 and 3/4 weigh 1, 1/6 and 5/6 weigh 4/3.
    assert found["i2"][1] / found["i0"][1] == pytest.approx(4 / 3)


def test_a_fit_holds_and_reports_what_it_found_of_places_and_signals(base: Base):
    # Whatever stands first is taken.
    interactions = [slate(f"i{n}", [f"{TEXTS[(n + k) % 4]} {n % 7}" for k in range(3)], drawn=True) for n in range(30)]
    pick = RankingEvidence(order=("c0", "c1", "c2"), observed=1)
    rows = [(f"i{n}", FeedbackKind.SIGNAL, pick, f"r{n % 5}") for n in range(30)]
    rows += [("i0", FeedbackKind.SIGNAL, Binary(candidate="c1", positive=False, source="skip"), "r0")]
    model = fit_reward(base, frozen(interactions, rows), {}, RewardSettings(adapter=False), ModelSettings())
    offsets = model.facts["place_offsets"]
    assert max(offsets[:2]) < -0.5
    assert model.shared.offsets.tolist() == pytest.approx(offsets, abs=1e-3)
    assert model.facts["signal_noise"] == {"skip": {"false_up": 0.3, "false_down": 0.3}}
