"""Recognisers of other distributions find what has no shape; one that fails lets no text through."""

import sys

import pytest
from plaudit.errors import Misconfigured, PluginFailed
from plaudit.plugins.recognisers import Recognisers
from plaudit.settings import load_settings

MODULE = '''
import re, time

class Names:
    """Knows two people; takes every word in capitals for one, as a careless model may."""
    def find(self, text):
        for match in re.finditer(r"Ana Ruiz|Bo|[A-Z]{3,}", text):
            yield (*match.span(), "person")

class Wrong:
    def find(self, text):
        return {"Hangs": lambda: time.sleep(60), "Raises": lambda: 1 / 0, "Exits": lambda: exit(3),
                "Beyond": lambda: [(0, len(text) + 1, "person")], "Kind": lambda: [(0, 1, "A b")],
                "Empty": lambda: [(1, 1, "person")], "Other": lambda: [None], "None": lambda: None}[text]()

class NoFind: pass
'''


@pytest.fixture
def recognisers(tmp_path, monkeypatch):
    """Recognisers of these settings, with a real distribution that announces some."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "names_of.py").write_text(MODULE)
    info = tmp_path / "names_of-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: names-of\nVersion: 1\n")
    points = [f"{name.lower()} = names_of:{name}" for name in ("Names", "Wrong", "NoFind", "Gone")]
    (info / "entry_points.txt").write_text("\n".join(["[plaudit.recognisers]", *points]) + "\n")
    monkeypatch.delitem(sys.modules, "names_of", raising=False)
    told = []

    def made(*overrides):
        settings = load_settings(overrides=["plugins.budget_seconds=0.2", *overrides], environ={})
        return Recognisers(settings, lambda *labels: told.append(labels)), settings.privacy

    made.told = told
    return made


def test_what_a_recogniser_finds_is_replaced_beside_what_has_a_shape(recognisers):
    found, privacy = recognisers('privacy.recognisers=["names"]', 'privacy.redact=["email"]')
    text, counts = found.redaction(privacy)("Ana Ruiz (ana@example.org) and Bo wrote.")
    assert text == "[PERSON] ([EMAIL]) and [PERSON] wrote."
    assert counts == {"person": 2, "email": 1}
    assert found.redaction(privacy)(text)[0] == text, "a placeholder is nobody's name"


def test_without_a_name_nothing_is_imported_and_nothing_is_replaced(recognisers):
    found, privacy = recognisers()
    assert not found.redaction(privacy)
    assert "names_of" not in sys.modules


def test_one_of_a_channel_is_loaded_too(recognisers):
    recognisers('channels={"echo/acme": {"privacy": {"recognisers": ["names"]}}}')
    assert "names_of" in sys.modules


@pytest.mark.parametrize("fault", ["Hangs", "Raises", "Exits", "Beyond", "Kind", "Empty", "Other", "None"])
def test_a_text_that_nobody_looked_through_goes_nowhere(recognisers, fault):
    found, privacy = recognisers('privacy.recognisers=["wrong"]')
    with pytest.raises(PluginFailed, match="recogniser wrong") as caught:
        found.redaction(privacy)(fault)
    assert recognisers.told == [("", "recogniser wrong", caught.value.metadata["why"])]


@pytest.mark.parametrize(("name", "words"), [("gone", "AttributeError"), ("nofind", "no method find"), ("x", "wrong")])
def test_one_that_cannot_be_used_stops_the_start_with_its_name(recognisers, name, words):
    with pytest.raises(Misconfigured, match=rf"'{name}'.*{words}"):
        recognisers(f'privacy.recognisers=["{name}"]')
