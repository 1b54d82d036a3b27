"""Plugins are found, checked with their distribution's name, and guarded."""

import dataclasses
import sys

import pytest
from plaudit import plugins
from plaudit.domain import Declaration
from plaudit.errors import Misconfigured
from plaudit.plugins import installed, load_plugins
from plaudit.types import Action, FeedbackKind, Scale

PLUGIN = """
from plaudit.domain import Declaration, DomainPlugin
from plaudit.errors import InvalidField
from plaudit.types import Action, FeedbackKind, Outcome, Prompt

class Domain(DomainPlugin):
    declaration = Declaration(
        name={name!r}, version="1", action=Action.COMPLETION, kinds=frozenset({{FeedbackKind.THUMBS}}), {more}
    )
    def render(self, request):
        if request.passages:
            raise InvalidField("no passages, please", field="passages")
        raise ZeroDivisionError("boom")
    def parse(self, prompt, output):
        return Outcome(displayed=output)
    def to_evidence(self, interaction, feedback):
        yield 1 / 0

class NotAPlugin:
    pass

class Raises:
    def __init__(self):
        raise RuntimeError("no disk")

class BadDeclaration(Domain):
    declaration = {{"name": {name!r}}}

class Exits:
    def __init__(self):
        raise SystemExit(0)

class DeclaresOnce(Domain):
    asked = 0
    @property
    def declaration(self):
        self.asked += 1
        return Domain.declaration if self.asked == 1 else 1 / 0

class ExitsWhenAsked(Domain):
    @property
    def declaration(self):
        raise SystemExit(0)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution into a folder of its own, with a real entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution, entry, *, name="chess", more="", version="0.3"):
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(PLUGIN.format(name=name, more=more))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[plaudit.domains]\n{entry.format(module=module)}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_an_allowed_plugin_loads_and_one_that_is_not_is_never_imported(install):
    install("plaudit-chess", "chess = {module}:Domain")
    assert set(load_plugins(("chess",))) == {"chess"}
    sys.modules.pop("plaudit_chess")
    assert "chess" not in load_plugins(("echo",))
    assert load_plugins(()) == {}
    assert "plaudit_chess" not in sys.modules


def test_unset_loads_everything_that_is_installed(install):
    install("plaudit-chess", "chess = {module}:Domain")
    assert set(load_plugins(None)) == {plugin.name for plugin in installed()} >= {"chess", "echo"}


def test_the_mapping_cannot_be_changed(install):
    plugins = load_plugins(("echo",))
    with pytest.raises(TypeError):
        plugins["echo"] = None


def test_installed_names_the_distribution_without_importing_it(install):
    install("plaudit-chess", "chess = {module}:Domain", version="2.5")
    (chess,) = [plugin for plugin in installed() if plugin.name == "chess"]
    assert (chess.distribution, chess.version, chess.value) == ("plaudit-chess", "2.5", "plaudit_chess:Domain")
    assert "plaudit_chess" not in sys.modules


@pytest.mark.parametrize(
    ("entry", "more", "words"),
    [
        ("chess = {module}:Domain", "contract_version=99", "contract version 99"),
        ("draughts = {module}:Domain", "", "declares the name 'chess'"),
        ("chess = {module}:NotAPlugin", "", "is a NotAPlugin, not a plaudit.domain.DomainPlugin"),
        ("chess = {module}:Raises", "", "RuntimeError: no disk"),
        ("chess = {module}:Missing", "", "AttributeError"),
        ("chess = {module}_gone:Domain", "", "ModuleNotFoundError"),
        ("chess = {module}:BadDeclaration", "", "declaration is a dict"),
    ],
)
def test_a_plugin_that_does_not_fit_is_refused_with_its_distribution(install, entry, more, words):
    install("plaudit-chess", entry, more=more, version="0.3")
    with pytest.raises(Misconfigured) as caught:
        load_plugins((entry.split(" ")[0],))
    assert words in caught.value.message
    assert "plaudit-chess 0.3" in caught.value.message


def test_two_distributions_of_one_domain_are_refused_with_both_names(install):
    install("plaudit-chess", "chess = {module}:Domain")
    install("other-chess", "chess = {module}:Domain", version="9.9")
    with pytest.raises(Misconfigured, match=r"plaudit-chess 0\.3.*") as caught:
        load_plugins(("chess",))
    assert "other-chess 9.9" in caught.value.message


def test_all_problems_are_reported_at_once(install):
    install("plaudit-chess", "chess = {module}:NotAPlugin")
    with pytest.raises(Misconfigured) as caught:
        load_plugins(("chess", "go"))
    assert "NotAPlugin" in caught.value.message
    assert "'go', which is not installed" in caught.value.message


@pytest.mark.parametrize("kind", ["Exits", "ExitsWhenAsked"])
def test_a_plugin_that_tries_to_end_the_process_stops_the_start_with_its_name(install, kind):
    install("plaudit-chess", f"chess = {{module}}:{kind}")
    with pytest.raises(Misconfigured, match=r"plaudit-chess 0\.3.*SystemExit, which ends a process"):
        load_plugins(("chess",))


def test_a_plugin_that_hangs_while_it_is_loaded_stops_the_start_with_its_name(install, monkeypatch):
    monkeypatch.setattr(plugins, "LOAD_SECONDS", 0.05)
    install("plaudit-chess", "chess = {module}:Domain", more="policy_version=__import__('time').sleep(2)")
    with pytest.raises(Misconfigured, match=r"plaudit-chess 0\.3.*has not ended within"):
        load_plugins(("chess",))


def test_facts_are_read_once(install):
    install("plaudit-chess", "chess = {module}:DeclaresOnce")
    assert load_plugins(("chess",))["chess"].declaration.name == "chess"


WRONG_TYPES = {
    "name": (None, 5, "half \ud800"),
    "version": (None, 1, "long" * 100),
    "action": ("completion", None),
    "kinds": (None, "thumbs", {FeedbackKind.THUMBS}, frozenset({"thumbs"}), [[]]),
    "reasons": (None, "clear", frozenset({1}), frozenset({""})),
    "rating_scale": ((1, 5), Scale(low="1", high="5"), Scale(low=None, high=5), Scale(low=0, high=10**400)),
    "signals": (None, ("like",), (("like", (0, 1)),), ((None, Scale(low=0, high=1)),)),
    "labels": (None, ["yes"], "yes", frozenset({1})),
    "few_raters": (None, "no"),
    "conversations": (None, 1),
    "option_score": ("sum", None),
    "place_weights": (None, 1.0, ("1",), (True,), [1.0]),
    "costs": (None, ("yes",), (("yes", "no"),), (("yes", "no", "1"),), ((1, 2, 3.0),), (("yes", "no", 10**400),)),
    "severe": (None, "yes", frozenset({1})),
    "policy_version": (None, 7, "nul \0"),
}


def test_facts_of_a_wrong_type_are_named_and_nothing_raises():
    right = Declaration(name="a", version="1", action=Action.CHOICE, kinds=frozenset({FeedbackKind.THUMBS}))
    assert right.faults() == []
    for field, values in WRONG_TYPES.items():
        for value in values:
            (fault,) = dataclasses.replace(right, **{field: value}).faults()
            assert fault.startswith(f"{field} is not "), value
    assert WRONG_TYPES.keys() == {field.name for field in dataclasses.fields(right)} - {"contract_version"}
