"""One keen rater costs no more than a bound, and a part of its thumbs stands for all of them."""

import numpy as np
import pytest
import torch
from plaudit.reward import likelihoods as like
from plaudit.reward.batch import MOST_CITED, MOST_THUMBS_OF_ALL, Batch, Shared, Treatment
from plaudit.reward.completion import Completion
from plaudit.reward.fit import _cost
from plaudit.reward.units import Event, Thumb, ThumbsUnit
from plaudit.types import FeedbackKind


def _unit(who, ups, downs, first=0):
    """A rater's thumbs on completions of their own; their scores are what `_score` says."""
    thumbs = []
    for n in range(ups + downs):
        event = Event(f"{who}-{n}", who, "group", FeedbackKind.THUMBS, 1.0)
        # Ups and downs take turns, as they come in life.
        positive = n * ups // (ups + downs) != (n + 1) * ups // (ups + downs)
        thumbs.append(Thumb(event, Completion((1,), (first + n,)), positive))
    assert sum(thumb.positive for thumb in thumbs) == ups
    return ThumbsUnit(who, tuple(thumbs))


def _score(completion):
    return float(np.sin(completion.shown[0] * 12.9898))


# One reference of the one prompt: it shifts all scores alike, and no likelihood of thumbs sees a shift.
REFERENCES = {"group": (Completion((1,), (-1,)),)}


def _loss(units, treatment=Treatment.CONTRAST):
    batch = Batch(units, REFERENCES, heads=1, seed=0, treatment=treatment, bootstrap=False)
    scores = torch.tensor([[_score(each)] for each in batch.completions], dtype=torch.double)
    return batch, batch.loss(scores, Shared.start()).item()


def _full(unit, treatment):
    """The sum over everything, by the likelihood itself."""
    scores = torch.tensor([_score(thumb.completion) for thumb in unit.thumbs], dtype=torch.double)
    positive = torch.tensor([thumb.positive for thumb in unit.thumbs])
    mask, zero = torch.ones(len(positive), dtype=torch.bool), torch.zeros((), dtype=torch.double)
    if treatment is Treatment.CENTRED:
        return like.thumbs_centred_loss(scores, positive, mask, zero, zero).item()
    return like.thumbs_contrast_loss(scores, positive, mask, zero).item()


@pytest.mark.parametrize("treatment", list(Treatment))
def test_thumbs_within_the_bound_count_exactly_whatever_the_other_raters_have(treatment):
    units = [_unit("ada", 3, 2), _unit("ben", 9, 4, 100), _unit("cy", 20, 20, 200), _unit("di", 1, 1, 300)]
    _, loss = _loss(units, treatment)
    assert loss == pytest.approx(sum(_full(unit, treatment) for unit in units), rel=1e-6)


@pytest.mark.parametrize("treatment", list(Treatment))
def test_memory_grows_with_raters_and_never_with_one_rater(treatment):
    """Counted in the numbers that a batch holds, not in seconds."""

    def numbers(units):
        batch, _ = _loss(units, treatment)
        blocks = [*batch._thumbs]
        return len(batch.completions), sum(block.drawn.numel() + block.references.numel() for block in blocks)

    crowd = [_unit(f"rater-{n}", 5, 5, 10 * n) for n in range(100)]
    completions, held = numbers(crowd)
    keen_completions, keen_held = numbers([*crowd, _unit("keen", 2000, 1000, 10_000)])
    assert keen_completions - completions == MOST_THUMBS_OF_ALL
    assert keen_held - held <= 2 * MOST_THUMBS_OF_ALL**2
    _, twice = numbers([*crowd, *(_unit(f"more-{n}", 5, 5, 2000 + 10 * n) for n in range(100))])
    assert twice == 2 * held


@pytest.mark.parametrize(("ups", "downs"), [(40, 30), (90, 4), (3, 70)])
@pytest.mark.parametrize("treatment", list(Treatment))
def test_a_part_of_a_raters_thumbs_has_the_mean_of_all(treatment, ups, downs):
    # The draw hangs on the rater's name and thumbs: other names, other draws of the same scores.
    found = [_loss([_unit(f"rater-{n}", ups, downs)], treatment)[1] for n in range(400)]
    full = _full(_unit("rater", ups, downs), treatment)
    error = np.std(found) / np.sqrt(len(found))
    # A centred thumb is centred on the mean of the part, which is a little off the mean of all: under 1%.
    slack = 0.01 * full if treatment is Treatment.CENTRED else 0.0
    assert abs(np.mean(found) - full) < 4 * error + slack


def test_the_draw_is_the_same_for_the_same_thumbs():
    unit = _unit("keen", 300, 200)
    assert _loss([unit])[1] == _loss([unit])[1]


def test_a_thumb_without_a_reference_takes_no_part_if_scores_are_centred():
    """It used to stay uncentred beside centred ones, unsaid."""
    alone = _unit("ada", 2, 2)
    own = {"group": (alone.thumbs[0].completion,)}
    # The first completion is its own prompt's only reference: it must not be compared with itself.
    for treatment, count in ((Treatment.CONTRAST, 3), (Treatment.CENTRED, 3), (Treatment.PLAIN, 4)):
        batch = Batch([alone], own, heads=1, seed=0, treatment=treatment, bootstrap=False)
        assert int((batch._thumbs[0].rows >= 0).sum()) == count
    assert not Batch([alone], {}, heads=1, seed=0, treatment=Treatment.CONTRAST, bootstrap=False).completions


def test_a_step_scores_no_more_than_it_was_reckoned_at_however_many_options_a_prompt_has():
    asked = [Completion((n,), (0,)) for n in range(4)]
    options = tuple(Completion(each.prompt, (k,)) for each in asked for k in range(50))
    given = tuple(
        Thumb(Event(f"e{n}", "ann", "g", FeedbackKind.THUMBS, 1.0), each, n % 2 == 0) for n, each in enumerate(asked)
    )
    unit, rng = ThumbsUnit("ann", given), np.random.default_rng(0)
    step = Batch([unit], {"g": options}, heads=1, seed=0, treatment=Treatment.CENTRED, rng=rng)
    assert len(step.completions) == 4 * (1 + MOST_CITED) == _cost(unit)
    # Heads are fitted on features that are stored: there all of them centre.
    assert len(Batch([unit], {"g": options}, heads=1, seed=0, treatment=Treatment.CENTRED).completions) == 200
