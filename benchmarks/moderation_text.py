"""The simple ones: majority class, and logistic regression on counts of words or of letter n-grams.

Enters: texts with labels. Leaves: probabilities of each category for other texts. Regularisation is chosen by
cross-validation on the labels at hand, so that the baseline gets the chance that a careful engineer would give it.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

import torch

STRENGTHS = (1.0, 10.0, 100.0)  # Inverse of the L2 penalty on the sum of losses, as scikit-learn's C.
FOLDS = 3
MOST_FEATURES = 20_000
STEPS = 60


def majority(labels: Sequence[str], categories: Sequence[str], count: int) -> torch.Tensor:
    """The shares of the labels so far (with one of each added), for each of `count` texts: (count, C)."""
    seen = Counter(labels)
    shares = torch.tensor([seen[category] + 1.0 for category in categories], dtype=torch.float64)
    return (shares / shares.sum()).expand(count, -1)


def words(text: str) -> list[str]:
    """Words and pairs of neighbouring words."""
    found = re.findall(r"\w+|[^\w\s]", text.casefold())
    return found + [f"{first} {second}" for first, second in itertools.pairwise(found)]


def letters(text: str) -> list[str]:
    """All pieces of 2 to 5 letters, with the ends of the text marked."""
    marked = f"^{' '.join(text.casefold().split())}$"
    return [marked[at : at + size] for size in range(2, 6) for at in range(len(marked) - size + 1)]


def logistic_regression(
    texts: Sequence[str],
    labels: Sequence[str],
    others: Sequence[str],
    categories: Sequence[str],
    pieces: Callable[[str], list[str]],
) -> torch.Tensor:
    """Probabilities (N, C) of the categories for `others`: multinomial, L2, on TF-IDF of `pieces`."""
    index = {piece: place for place, piece in enumerate(_vocabulary(texts, pieces))}
    train, test = _counts(texts, pieces, index), _counts(others, pieces, index)
    rarity = torch.log((1.0 + len(texts)) / (1.0 + (train > 0).sum(0))) + 1.0
    train, test = (torch.nn.functional.normalize(each * rarity, dim=1) for each in (train, test))
    target = torch.tensor([categories.index(label) for label in labels])
    strength = _chosen(train, target, len(categories))
    weights, bias = _fit(train, target, len(categories), strength)
    return torch.softmax((test @ weights + bias).double(), dim=1)


def _vocabulary(texts: Sequence[str], pieces: Callable[[str], list[str]]) -> list[str]:
    seen = Counter(piece for text in texts for piece in set(pieces(text)))
    return [piece for piece, _ in seen.most_common(MOST_FEATURES)]


def _counts(texts: Sequence[str], pieces: Callable[[str], list[str]], index: dict[str, int]) -> torch.Tensor:
    counts = torch.zeros(len(texts), len(index))
    for row, text in enumerate(texts):
        for piece, count in Counter(pieces(text)).items():
            if piece in index:
                counts[row, index[piece]] = 1.0 + math.log(count)
    return counts


def _chosen(features: torch.Tensor, target: torch.Tensor, categories: int) -> float:
    """The strength with the least loss on left-out folds."""
    places = list(range(len(target)))
    random.Random(0).shuffle(places)
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for fold in range(FOLDS):
        left_out = torch.tensor(places[fold::FOLDS])
        rest = torch.tensor(sorted(set(places) - set(places[fold::FOLDS])))
        for strength in STRENGTHS:
            weights, bias = _fit(features[rest], target[rest], categories, strength)
            logits = features[left_out] @ weights + bias
            losses[strength] += float(torch.nn.functional.cross_entropy(logits, target[left_out], reduction="sum"))
    return min(losses, key=lambda strength: losses[strength])


def _fit(
    features: torch.Tensor, target: torch.Tensor, categories: int, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    weights = torch.zeros(features.shape[1], categories, requires_grad=True)
    bias = torch.zeros(categories, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fitted = torch.nn.functional.cross_entropy(features @ weights + bias, target, reduction="sum")
        total = (fitted + weights.square().sum() / (2 * strength)) / len(target)
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach(), bias.detach()
