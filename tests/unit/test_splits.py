"""Splits: shares as documented, fixed by the salt, raters and groups apart."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plaudit.evidence.splits import Split, group_split, rater_split

SALT = bytes(range(32))
NAMES = [f"name {index}" for index in range(20_000)]
# Four standard deviations of a share of .5 over 20,000 names: 4 * sqrt(.25 / 20000) = .014.
TOLERANCE = 0.014


def shares(splits: list[Split]) -> dict[Split, float]:
    return {split: count / len(splits) for split, count in Counter(splits).items()}


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ([rater_split(SALT, name) for name in NAMES], {Split.TRAIN: 0.6, Split.GATE: 0.2, Split.CALIBRATION: 0.2}),
        ([group_split(SALT, name) for name in NAMES], {Split.TRAIN: 0.75, Split.GATE: 0.25}),
        (
            [group_split(SALT, name, few_raters=True) for name in NAMES],
            {Split.TRAIN: 0.7, Split.GATE: 0.15, Split.CALIBRATION: 0.15},
        ),
    ],
    ids=["raters", "groups", "groups of few raters"],
)
def test_shares_are_those_of_the_design(splits: list[Split], expected: dict[Split, float]) -> None:
    assert shares(splits) == pytest.approx(expected, abs=TOLERANCE)


def test_a_rater_split_is_the_salted_hash_worked_by_hand() -> None:
    # SHA-256 of the label, the salt's length, a NUL, the salt and the name; its first 8 bytes over 2^64.
    digest = hashlib.sha256(b"plaudit split rater 32\x00" + SALT + b"ann").digest()
    unit = int.from_bytes(digest[:8], "big") / 2**64
    expected = Split.TRAIN if unit < 0.6 else Split.GATE if unit < 0.8 else Split.CALIBRATION
    assert rater_split(SALT, "ann") is expected


@given(salt=st.binary(min_size=1, max_size=40), name=st.text(max_size=40))
def test_the_same_salt_and_name_always_give_the_same_split(salt: bytes, name: str) -> None:
    assert rater_split(salt, name) is rater_split(bytes(bytearray(salt)), name)
    assert group_split(salt, name) is group_split(bytes(bytearray(salt)), name)


def test_another_salt_sorts_anew() -> None:
    other = SALT[::-1]
    agreeing = sum(rater_split(SALT, name) is rater_split(other, name) for name in NAMES) / len(NAMES)
    # Independent draws agree with probability .6^2 + .2^2 + .2^2 = .44.
    assert agreeing == pytest.approx(0.44, abs=TOLERANCE)


def test_a_raters_split_says_nothing_of_the_group_of_the_same_name() -> None:
    both = sum(rater_split(SALT, name) is Split.TRAIN is group_split(SALT, name) for name in NAMES) / len(NAMES)
    assert both == pytest.approx(0.6 * 0.75, abs=TOLERANCE)


def test_salt_and_name_do_not_run_together() -> None:
    names = [f"x{index}" for index in range(200)]
    assert [rater_split(b"ab", name) for name in names] != [rater_split(b"a", "b" + name) for name in names]
