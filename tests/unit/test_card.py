"""The card of a release: everything that was measured stands on it once, and nothing that people wrote can be."""

from plaudit.release.card import card

MANIFEST = {
    "versions": {"plaudit": "0.2.0", "plugin:ethics": "0.1.0"},
    "created_at": "2026-01-02T03:04:05Z",
    "parent": 1,
    "base_digest": "b" * 64,
    "evidence_digest": "e" * 64,
    "evidence_counts": {"pair": 120, "ranking": 8},
    "kl": 1.25,
}


def check(name, value, *, passed=True, low=None, high=None, note="a note"):
    return {"name": name, "passed": passed, "value": value, "threshold": 0.5, "low": low, "high": high, "note": note}


CHECKS = [
    check("win_base", 0.7),
    check("harm_people-before-animals", 0.1, passed=False),
    check("reward_accuracy", 0.66),
    check("slice_asked-in.north", 0.8, low=0.7, high=0.9, note="for information: 40 comparisons | of 9 raters"),
    check("slice_asked-in.south", 0.55, low=0.4, high=0.7),
]
RELEASE = {"channel": "ethics/acme", "version": 2, "state": "rejected", "digest": "d" * 64, "manifest": MANIFEST}


def test_a_card_shows_slices_with_the_worst_and_each_check_once():
    text = card({**RELEASE, "decision": {"accepted": False, "checks": CHECKS}})
    assert text.startswith("# ethics/acme, version 2: rejected\n")
    assert "| asked-in.north | 0.8 | 0.7 | 0.9 | 40 comparisons / of 9 raters |" in text
    assert "Worst: asked-in.south, 0.55." in text
    assert "| pair | 120 |" in text
    assert "- gate: refused" in text
    assert "| harm_people-before-animals | failed | 0.1 | 0.5 | a note |" in text
    for name in ("win_base", "harm_people-before-animals", "reward_accuracy"):
        assert text.count(f"| {name} |") == 1


def test_the_base_has_a_card_without_a_gate():
    text = card({**RELEASE, "version": 0, "decision": None})
    assert "the base is not judged" in text
    assert "Worst" not in text
